//! From a model's name to a directory on this machine, by the shortest way there is.

use super::{from_hub::FromHub, progress::Bars, scan::refused};
use anyhow::{Result, bail};
use serde::Serialize;
use squish_hub::{
    Hub, Name,
    catalog::{Model, Variant},
    hub::Transfer,
    ollama,
    store::{self, Resolution, resolve},
};
use squish_models::Checkpoint;
use squish_quant::{Error, Options, Origin, Recipe, compress, compress_arriving, examine, origin};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// What is wanted.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// A name, as `--model` takes it.
    pub name: String,
    /// A built-in recipe or a file, in the place of the one that ends the name.
    pub recipe: Option<String>,
    /// Where the result is to be, in the place of the store.
    pub out: Option<PathBuf>,
    /// Whether the original stays in the hub's cache.
    pub keep_source: bool,
}

/// How a directory came about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum How {
    /// It was there.
    There,
    /// The original was downloaded, or was in the hub's cache.
    Original,
    /// A squished checkpoint was downloaded that somebody has published.
    Published,
    /// Another name has the same contents and recipe.
    Shared,
    /// The original was squished.
    Squished,
}

/// A model on this machine.
#[derive(Debug, Clone, Serialize)]
pub struct Obtained {
    /// Its directory.
    pub dir: PathBuf,
    /// How it came there.
    pub how: How,
}

/// Where a squished model is to come from, and go to.
struct Order {
    repository: String,
    revision: String,
    recipe: Recipe,
    out: PathBuf,
    /// Repositories that may hold it already.
    published: Vec<String>,
    keep_source: bool,
    /// Whether the recipe is built in: its name says which it is.
    built_in: bool,
    /// Whether the directory was given, so that its name says nothing of what it holds.
    out_given: bool,
}

/// Brings a model here: nothing where it is here, a published squished one, the original, or the original squished as it arrives.
pub fn obtain(wish: &Wish, home: &Path, hub: &Hub, bars: &Bars) -> Result<Obtained> {
    if wish.recipe.is_none()
        && wish.out.is_none()
        && let Resolution::Ready(dir) = resolve(&wish.name, home, hub).map_err(refused)?
    {
        let cached = dir.starts_with(&hub.cache) && !Path::new(&wish.name).is_dir();
        if dir.starts_with(home.join("models")) && work(&dir).exists() {
            let _lock = store::lock(&dir, bars)?;
            store::discard(&work(&dir))?;
        }
        // Other programs fetch weights alone; what else there is only the hub knows.
        if !cached || hub.offline || dir.join("tokenizer.json").is_file() {
            return Ok(Obtained { dir, how: How::There });
        }
    }
    let (repository, revision, stem, model) = match Name::parse(&wish.name)? {
        Name::Hub { repository, revision } => {
            let stem = repository.replace('/', "--").to_ascii_lowercase();
            let stem =
                if revision == "main" { stem } else { format!("{stem}@{}", revision.replace('/', "-")) };
            (repository, revision, stem, None)
        }
        Name::Catalog(model, variant) => {
            (model.repository.clone(), model.revision.clone(), model.name.clone(), Some((model, variant)))
        }
        Name::Directory(dir) => bail!("{} is here already; `compress` squishes it", dir.display()),
        Name::Ollama(name) => {
            let dir = ollama::import(&ollama::store().unwrap_or_default(), &name, home).map_err(refused)?;
            bail!("{} is here already; `compress` squishes it", dir.display())
        }
    };
    let variant = model.as_ref().map(|(_, variant)| *variant);
    let Some(recipe) = wish.recipe.as_deref().or(variant.and_then(Variant::recipe)) else {
        if wish.out.is_some() {
            bail!("--out needs --recipe: an original stays in the hub's cache");
        }
        let pulled = hub.pull(&repository, &revision, bars).map_err(refused)?;
        return Ok(Obtained { dir: pulled.dir, how: How::Original });
    };
    let recipe = Recipe::load(recipe)?;
    let built_in =
        Recipe::text(&recipe.name).is_some_and(|text| Recipe::parse("", text).is_ok_and(|r| r == recipe));
    let published = match &model {
        Some((model, _)) if built_in => published(model, &recipe.name),
        _ => Vec::new(),
    };
    let out = match &wish.out {
        Some(out) => out.clone(),
        None => store::directory_of(home, &stem, &recipe.name)?,
    };
    let (keep_source, out_given) = (wish.keep_source, wish.out.is_some());
    Order { repository, revision, recipe, out, published, keep_source, built_in, out_given }
        .fill(home, hub, bars)
}

/// Where a directory's originals and parts of it lie until it is there.
fn work(out: &Path) -> PathBuf {
    store::beside(out, "partial")
}

/// Where a model may have been published: as the catalog says, or in the organisation that `SQUISH_ORG` names.
fn published(model: &Model, recipe: &str) -> Vec<String> {
    let organisation = std::env::var("SQUISH_ORG").ok().filter(|name| !name.is_empty());
    let by_name = organisation.map(|organisation| format!("{organisation}/{}-{recipe}", model.name));
    model.published.get(recipe).cloned().into_iter().chain(by_name).collect()
}

impl Order {
    fn fill(self, home: &Path, hub: &Hub, bars: &Bars) -> Result<Obtained> {
        let there = |how| Obtained { dir: self.out.clone(), how };
        let work = work(&self.out);
        if self.is_there() && !work.exists() {
            return Ok(there(How::There));
        }
        // Others that want the same wait, and find it there.
        let _lock = store::lock(&self.out, bars)?;
        store::sweep(&self.out)?;
        if self.is_there() {
            // A process that was killed may have come no further than this.
            store::discard(&work)?;
            return Ok(there(How::There));
        }
        match fs::read_dir(&self.out).map(|mut entries| entries.next().is_some()) {
            Ok(true) => return Err(Error::OutputNotEmpty(self.out).into()),
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                return Err(Error::Io { path: self.out, source }.into());
            }
            _ => {}
        }
        for repository in &self.published {
            if !hub.offline && self.take_published(hub, repository, &work, bars)? {
                store::discard(&work)?;
                return Ok(there(How::Published));
            }
        }
        let how = self.squish(home, hub, &work, bars);
        // What has come is of use to another call, unless that must fail as well.
        if how.as_ref().map_or_else(is_final, |_| true) {
            store::discard(&work)?;
        }
        how.map(there)
    }

    /// Whether the directory holds what is wanted, as far as it says so itself.
    fn is_there(&self) -> bool {
        let recipe = || Some(origin::hash_recipe(&self.recipe));
        let is_other = |origin: Origin| {
            self.out_given && !origin.repository.eq_ignore_ascii_case(&self.repository)
                || !self.built_in && origin.recipe.is_some() && origin.recipe != recipe()
        };
        self.is_made(&self.out.join("config.json")) && !Origin::of(&self.out).is_some_and(is_other)
    }

    /// Whether a configuration says that the recipe has made its checkpoint.
    fn is_made(&self, config: &Path) -> bool {
        let config: serde_json::Value =
            serde_json::from_slice(&fs::read(config).unwrap_or_default()).unwrap_or_default();
        let quantised = &config["quantization_config"];
        quantised["quant_method"] == squish_models::checkpoint::QUANT_METHOD
            && quantised["recipe"] == self.recipe.name.as_str()
    }

    /// Squishes the original, from where it is or as it comes.
    fn squish(&self, home: &Path, hub: &Hub, work: &Path, bars: &Bars) -> Result<How> {
        let options = Options::new(self.recipe.clone());
        if hub.offline {
            let pulled = hub.pull(&self.repository, &self.revision, bars)?;
            // Without the hub's list nothing tells its contents but the commit.
            let contents = [("commit", pulled.commit.as_str())];
            let origin = Origin::new(&self.repository, &pulled.commit, &contents, &self.recipe);
            compress(&pulled.dir, &self.out, &Options { origin: Some(origin), ..options }, bars)?;
            return Ok(How::Squished);
        }
        let staging = hub.stage(&self.repository, &self.revision, work).map_err(refused)?;
        let origin = Origin::new(&self.repository, staging.commit(), &staging.contents(), &self.recipe);
        let same = |dir: &PathBuf| Origin::of(dir).is_some_and(|found| found.key == origin.key);
        if let Some(other) = store::directories(home).into_iter().find(same) {
            store::share(&other, &self.out, (origin::ORIGIN_FILE, origin.text().as_bytes()))?;
            return Ok(How::Shared);
        }
        let options = Options { origin: Some(origin), ..options };
        // Other programs fetch a part of the files.
        let is_whole = |dir: &PathBuf| staging.contents().iter().all(|(name, _)| dir.join(name).is_file());
        if self.keep_source {
            let pulled = hub.pull(&self.repository, &self.revision, bars).map_err(refused)?;
            if pulled.commit != staging.commit() {
                bail!(
                    "{}@{} changed meanwhile; the same command begins anew",
                    self.repository,
                    self.revision
                );
            }
            compress(&pulled.dir, &self.out, &options, bars)?;
        } else if let Some(dir) = hub.cached(&self.repository, staging.commit()).filter(is_whole) {
            compress(&dir, &self.out, &options, bars)?;
        } else if options.calibration.is_some() {
            // What the headers tell is found before the weights come.
            let (outline, _) = staging.outline(bars).map_err(refused)?;
            examine(&outline, &options)?;
            let dir = staging.whole(bars).map_err(refused)?;
            compress(&dir, &self.out, &options, bars)?;
        } else {
            let arrivals = FromHub::new(staging, bars)?;
            compress_arriving(&arrivals, &self.out, work, &options, bars).map_err(|e| match e {
                Error::Hub(e) => refused(e),
                e => e.into(),
            })?;
        }
        Ok(How::Squished)
    }

    /// Takes a published checkpoint, if there is one and it is what its name says.
    fn take_published(&self, hub: &Hub, repository: &str, work: &Path, bars: &Bars) -> Result<bool> {
        use squish_hub::Error::{Hub, NotFound, Unauthorised, Unsafe};
        let not_taken = |reason: String| {
            bars.warn(&format!("{reason}; the original is taken"));
            Ok(false)
        };
        let staging = match hub.stage(repository, "main", work) {
            // A hub does not tell what is private from what is not there.
            Err(NotFound { .. } | Unauthorised { .. }) => return Ok(false),
            Err(error @ (Unsafe { .. } | Hub { .. })) => return not_taken(error.to_string()),
            staging => staging?,
        };
        let config = staging.small("config.json", bars).map_err(refused)?;
        if !config.is_some_and(|config| self.is_made(&config)) {
            let recipe = &self.recipe.name;
            return not_taken(format!("{repository} is not a checkpoint squished by {recipe}"));
        }
        let whole = staging.whole(bars).map_err(refused)?;
        // What cannot be opened would stand in the way under the model's name.
        if let Err(error) = Checkpoint::open(&whole) {
            staging.clear()?;
            return not_taken(format!("{repository} cannot be opened: {error}"));
        }
        staging.settle(&whole, &self.out)?;
        Ok(true)
    }
}

/// Whether the same call would fail again, whatever has come so far.
fn is_final(error: &anyhow::Error) -> bool {
    let of_hub = error.downcast_ref::<squish_hub::Error>().is_some();
    let passing = match error.downcast_ref::<Error>() {
        Some(
            Error::Hub(_)
            | Error::Io { .. }
            | Error::Paused { .. }
            | Error::Interrupted
            | Error::DiskFull { .. },
        ) => true,
        // A file that the checkpoint does not have is not there the next time, either.
        Some(Error::Model(squish_models::Error::Io { source, .. })) => {
            source.kind() != std::io::ErrorKind::NotFound
        }
        _ => false,
    };
    !of_hub && !passing
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind;

    #[test]
    fn what_a_disk_fails_at_once_is_not_thrown_away() {
        let read = |kind: ErrorKind| {
            let error = squish_models::Error::Io { path: "model.safetensors".into(), source: kind.into() };
            is_final(&Error::Model(error).into())
        };
        assert!(!read(ErrorKind::Other) && read(ErrorKind::NotFound));
        assert!(!is_final(&squish_hub::Error::Cancelled.into()));
        assert!(is_final(&refused(squish_hub::Error::Unsafe { what: "x".into(), reason: "y".into() })));
    }
}
