//! `squish-quant pull`.

use super::{
    obtain::{Wish, obtain},
    print, print_json,
    progress::Bars,
};
use anyhow::Result;
use clap::Args;
use squish_hub::{Hub, store};
use std::path::PathBuf;

/// Download a model, check every byte, and squish it; prints the directory.
///
/// Recipes without calibration squish one weights file of the original after the other as it arrives, and let go of it: the disk holds the
/// largest of them and the result. With calibration the original is needed to the end, and removed then. What was interrupted goes
/// on where it was; a model that is there already is left as it is. HF_ENDPOINT, HF_HOME, HF_TOKEN and HF_HUB_OFFLINE are those
/// of Hugging Face's own tools; in the organisation SQUISH_ORG squished models are looked for first. Exit code 2 where the repository is not safe to load.
///
/// With --json: dir, how (there, original, published, shared: another name has the same contents and recipe, squished), seconds, peak_memory_bytes.
#[derive(Debug, Args)]
pub struct Pull {
    /// A name of the catalog, or hf:organisation/name[@revision]: the original, if there is no --recipe.
    name: String,
    /// A built-in recipe or a TOML file, in the place of the one that ends the name.
    #[arg(long)]
    recipe: Option<String>,
    /// Where to put the squished model, in the place of $SQUISH_HOME/models.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Bring the original into the hub's cache, and leave it there.
    #[arg(long)]
    keep_source: bool,
    /// Print one JSON object on standard output.
    #[arg(long)]
    json: bool,
}

impl Pull {
    pub fn run(self) -> Result<()> {
        let start = std::time::Instant::now();
        let bars = Bars::new(!self.json)?;
        let Self { name, recipe, out, keep_source, json } = self;
        let wish = Wish { name, recipe, out, keep_source };
        let obtained = obtain(&wish, &store::home(), &Hub::from_env(), &bars)?;
        drop(bars);
        if !json {
            return print(&format!("{}\n", obtained.dir.display()));
        }
        let mut json = serde_json::to_value(&obtained)?;
        json["seconds"] = start.elapsed().as_secs_f64().into();
        json["peak_memory_bytes"] = serde_json::json!(squish_quant::peak_memory());
        print_json(&json)
    }
}
