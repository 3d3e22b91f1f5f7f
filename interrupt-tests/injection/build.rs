//! Turns the points of the facade on, for this build of the crate alone.

fn main() {
    println!("cargo::rustc-cfg=framepool_injection");
    // The crate has features that this build has not.
    println!("cargo::rustc-check-cfg=cfg(feature, values(any()))");
    println!("cargo::rerun-if-changed=build.rs");
}
