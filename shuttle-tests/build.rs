//! Builds the crate as for loom, with shuttle in its place: see `src/sync.rs`.

fn main() {
    println!("cargo::rustc-cfg=loom");
    println!("cargo::rustc-cfg=framepool_shuttle");
    // The crate has features that this build has not.
    println!("cargo::rustc-check-cfg=cfg(feature, values(any()))");
    println!("cargo::rerun-if-changed=build.rs");
}
