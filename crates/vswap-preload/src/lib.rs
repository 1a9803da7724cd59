//! The shared object that is loaded into unmodified programs.
//!
//! Its constructor reads the run's settings from the environment and puts hooks into libc's mapping
//! calls; the engine behind them is `vswap-pager`. Without settings it does nothing.
// No call is hooked on other machines yet.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_imports, unreachable_patterns))]
#![no_std]

mod futex;
mod hooks;
#[cfg(target_arch = "x86_64")]
mod patch;

use core::ffi::{CStr, c_char, c_int};

use vswap_pager::config::{Config, ENV_NAME, Engine};
use vswap_pager::engine::engine;
use vswap_pager::{link, start};

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn(c_int, *const *const c_char, *const *const c_char) = construct;

extern "C" fn construct(_argc: c_int, _argv: *const *const c_char, envp: *const *const c_char) {
    // SAFETY: it is the program's environment.
    let Some(text) = (unsafe { variable(environment(envp)) }) else { return };
    // Settings of another version come from an outer run whose coordinator does not know us.
    let Ok(config) = Config::parse(text) else { return };
    let inline = config.engine == Engine::Inline;
    // SAFETY: constructors run before the program has threads.
    unsafe { engine().configure(config) };
    engine().wants_inline(inline);
    start::begin();
    hooks::install(inline);
}

/// The program's environment. glibc's dynamic linker passes it to constructors, and sets `environ`
/// in a constructor that may run after this one; musl's passes nothing, and has set it.
#[cfg(target_arch = "x86_64")]
fn environment(passed: *const *const c_char) -> *const *const c_char {
    let variable = patch::address_of!(environ) as *const *const *const c_char;
    if patch::is_glibc() || variable.is_null() {
        return passed;
    }
    // SAFETY: a variable of libc's that is set before any constructor runs.
    unsafe { *variable }
}

#[cfg(not(target_arch = "x86_64"))]
fn environment(passed: *const *const c_char) -> *const *const c_char {
    passed
}

/// The value of [`ENV_NAME`] in an environment.
///
/// # Safety
/// `envp` must be an array of C strings that ends with a null pointer.
unsafe fn variable(envp: *const *const c_char) -> Option<&'static str> {
    let mut entry = envp;
    loop {
        // SAFETY: the caller passes an environment, and we stop at its end.
        let text = unsafe {
            if entry.is_null() || (*entry).is_null() {
                return None;
            }
            CStr::from_ptr(*entry)
        };
        let value = text
            .to_bytes()
            .strip_prefix(ENV_NAME.as_bytes())
            .and_then(|rest| rest.strip_prefix(b"="));
        if let Some(value) = value {
            return core::str::from_utf8(value).ok();
        }
        // SAFETY: this entry was not the end.
        entry = unsafe { entry.add(1) };
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    // A broken engine must not let the program compute on.
    link::end_broken(engine(), format_args!("{info}"))
}
