//! The tool with a home of its own, and no network.

use std::{path::Path, process::Command};

/// The `squish-quant` binary, for which everything that it looks for in its surroundings is in `home`.
pub fn at_home(home: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_squish-quant"));
    command.env("HF_HUB_OFFLINE", "1").env_remove("HF_HUB_CACHE");
    command.envs(["SQUISH_HOME", "HF_HOME", "OLLAMA_MODELS"].map(|name| (name, home))).args(args);
    command
}
