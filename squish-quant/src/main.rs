//! The `squish-quant` tool.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
