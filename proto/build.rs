//! Compiles the .proto files without protoc, so that a Rust tool chain is all a build needs.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=control.proto");
    println!("cargo:rerun-if-changed=kv.proto");
    let files = protox::compile(["control.proto", "kv.proto"], ["."])?;
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    Ok(())
}
