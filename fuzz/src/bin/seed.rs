//! Writes the inputs that fuzzing starts from: `seed DIR` makes `DIR/TARGET/*`.

use std::{fs, io::Result, path::Path};

fn main() -> Result<()> {
    let dir = std::env::args().nth(1).expect("seed DIR");
    for (target, bytes) in squish_fuzz::seeds::seeds() {
        let dir = Path::new(&dir).join(target);
        fs::create_dir_all(&dir)?;
        // Named by contents, so that a second run adds nothing.
        let hash = bytes
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
        fs::write(dir.join(format!("seed-{hash:016x}")), bytes)?;
    }
    Ok(())
}
