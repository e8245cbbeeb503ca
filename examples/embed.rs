//! The engine inside a program of one's own: `cargo run --release --example embed [DIR]`.

use squish_engine::{Error, Message, Pipeline};

fn main() -> Result<(), Error> {
    let bundled = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/squish-tiny-sqint2");
    let dir = std::env::args().nth(1).unwrap_or_else(|| bundled.into());

    let pipeline = Pipeline::from_dir(dir)?;
    let options = pipeline.options().clone().max_tokens(100).seed(1);
    let answer = pipeline.with_options(options).chat(&[Message::user("What is the sea?")])?;
    println!("{}", answer.text);
    println!("({:.0} tokens per second)", answer.stats.tokens_per_second());
    Ok(())
}
