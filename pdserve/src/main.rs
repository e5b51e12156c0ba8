//! The `pdserve` binary; everything is in the library, so that tests build the very same program.
fn main() -> std::process::ExitCode {
    pdserve::main()
}
