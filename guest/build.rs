//! Links the program without the system's start files and libraries, by our own script.
fn main() {
    let directory = std::env::var("CARGO_MANIFEST_DIR").unwrap();
    for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    println!(
        "cargo::rustc-link-arg-bins=-Wl,-T,{directory}/link.ld,--build-id=none,-z,max-page-size=4096,-z,noexecstack"
    );
    println!("cargo::rerun-if-changed=link.ld");
}
