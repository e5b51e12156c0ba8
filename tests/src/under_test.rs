//! The product as the tests start it: the same code as the `pdserve` binary, built together with the tests.
fn main() -> std::process::ExitCode {
    pdserve::main()
}
