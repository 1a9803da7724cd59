//! Link options of the preload object: everything is bound at load time, because lazy binding
//! walks memory that may be swapped out.

fn main() {
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,now");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,relro");
    println!("cargo:rustc-cdylib-link-arg=-nostartfiles");
}
