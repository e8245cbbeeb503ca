//! From a model's name to a directory on this machine, by the shortest way there is.

use super::{from_hub::FromHub, progress::Bars, scan::Refused};
use anyhow::{Result, bail};
use serde::Serialize;
use squish_hub::{
    Hub, Name,
    catalog::{Model, Variant},
    ollama,
    store::{self, Resolution, resolve},
};
use squish_models::Checkpoint;
use squish_quant::{Options, Origin, Recipe, compress, compress_arriving};
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
}

/// Brings a model here: nothing where it is here, a published squished one, the original, or the original squished as it arrives.
pub fn obtain(wish: &Wish, home: &Path, hub: &Hub, bars: &Bars) -> Result<Obtained> {
    if wish.recipe.is_none()
        && wish.out.is_none()
        && let Resolution::Ready(dir) = resolve(&wish.name, home, hub)?
    {
        return Ok(Obtained { dir, how: How::There });
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
    Order { repository, revision, recipe, out, published, keep_source: wish.keep_source }
        .fill(home, hub, bars)
}

/// Where a model may have been published: as the catalog says, or in the organisation that `SQUISH_ORG` names.
fn published(model: &Model, recipe: &str) -> Vec<String> {
    let organisation = std::env::var("SQUISH_ORG").ok().filter(|name| !name.is_empty());
    let by_name = organisation.map(|organisation| format!("{organisation}/{}-{recipe}", model.name));
    model.published.get(recipe).cloned().into_iter().chain(by_name).collect()
}

/// What is not safe to load has an exit code of its own.
pub fn refused(error: squish_hub::Error) -> anyhow::Error {
    match error {
        squish_hub::Error::Unsafe { .. } => Refused(error.to_string()).into(),
        error => error.into(),
    }
}

impl Order {
    fn fill(self, home: &Path, hub: &Hub, bars: &Bars) -> Result<Obtained> {
        let there = |how| Obtained { dir: self.out.clone(), how };
        if self.is_there() {
            return Ok(there(How::There));
        }
        // Others that want the same wait, and find it there.
        let _lock = store::lock(&self.out)?;
        if self.is_there() {
            return Ok(there(How::There));
        }
        let work = store::beside(&self.out, "partial");
        for repository in &self.published {
            if !hub.offline && self.take_published(hub, repository, &work, bars)? {
                remove(&work)?;
                return Ok(there(How::Published));
            }
        }
        let how = self.squish(home, hub, &work, bars);
        // What has come is of use to another call, unless that must fail as well.
        if how.as_ref().map_or_else(is_final, |_| true) {
            remove(&work)?;
        }
        how.map(there)
    }

    /// Whether the directory holds a checkpoint that the recipe has made.
    fn is_there(&self) -> bool {
        self.is_made(&self.out.join("config.json"))
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
            compress(&pulled.dir, &self.out, &options, bars)?;
            return Ok(How::Squished);
        }
        let staging = hub.stage(&self.repository, &self.revision, work).map_err(refused)?;
        let origin = Origin::new(&self.repository, staging.commit(), &staging.contents(), &self.recipe);
        let same = |dir: &PathBuf| Origin::of(dir).is_some_and(|found| found.key == origin.key);
        if let Some(other) = store::directories(home).into_iter().find(same) {
            store::share(&other, &self.out)?;
            return Ok(How::Shared);
        }
        let options = Options { origin: Some(origin), ..options };
        if self.keep_source {
            let pulled = hub.pull(&self.repository, &self.revision, bars).map_err(refused)?;
            compress(&pulled.dir, &self.out, &options, bars)?;
        } else if let Some(dir) = hub.cached(&self.repository, staging.commit()) {
            compress(&dir, &self.out, &options, bars)?;
        } else if options.calibration.is_some() {
            let dir = staging.whole(bars).map_err(refused)?;
            compress(&dir, &self.out, &options, bars)?;
        } else {
            let arrivals = FromHub::new(staging, bars)?;
            compress_arriving(&arrivals, &self.out, work, &options, bars).map_err(|e| match e {
                squish_quant::Error::Hub(e) => refused(e),
                e => e.into(),
            })?;
        }
        Ok(How::Squished)
    }

    /// Takes a published checkpoint, if there is one and it is what its name says.
    fn take_published(&self, hub: &Hub, repository: &str, work: &Path, bars: &Bars) -> Result<bool> {
        let staging = match hub.stage(repository, "main", work) {
            // A hub does not tell what is private from what is not there.
            Err(squish_hub::Error::NotFound { .. } | squish_hub::Error::Unauthorised { .. }) => {
                return Ok(false);
            }
            Err(error @ squish_hub::Error::Unsafe { .. }) => {
                eprintln!("note: {error}; the original is taken");
                return Ok(false);
            }
            staging => staging?,
        };
        let config = staging.small("config.json", bars).map_err(refused)?;
        if !config.is_some_and(|config| self.is_made(&config)) {
            eprintln!(
                "note: {repository} is not a checkpoint squished by {}; the original is taken",
                self.recipe.name
            );
            return Ok(false);
        }
        let whole = staging.whole(bars).map_err(refused)?;
        // What cannot be opened would stand in the way under the model's name.
        Checkpoint::open(&whole)?;
        staging.settle(&whole, &self.out)?;
        Ok(true)
    }
}

/// Whether the same call would fail again, whatever has come so far.
fn is_final(error: &anyhow::Error) -> bool {
    use squish_quant::Error;
    let of_hub = error.downcast_ref::<squish_hub::Error>().is_some();
    let passing = matches!(
        error.downcast_ref::<Error>(),
        Some(
            Error::Hub(_)
                | Error::Io { .. }
                | Error::Paused { .. }
                | Error::Interrupted
                | Error::DiskFull { .. }
        )
    );
    !of_hub && !passing
}

fn remove(work: &Path) -> Result<()> {
    match fs::remove_dir_all(work) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(squish_quant::Error::Io { path: work.into(), source }.into())
        }
        _ => Ok(()),
    }
}
