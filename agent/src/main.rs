//! The `undermount` binary: parses, runs, returns an exit code.

mod cli;

fn main() -> std::process::ExitCode {
    cli::main()
}
