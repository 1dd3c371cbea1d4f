//! The targets as libFuzzer drives them. Needs no crate, but clang's runtime and coverage in everything:
//!
//! ```text
//! RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
//!            -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
//!            -Ccodegen-units=1 -Clinker=clang -Clink-arg=-fsanitize=fuzzer" \
//!   cargo build --release --target x86_64-unknown-linux-gnu -p croft-fuzz --example libfuzzer
//! CROFT_FUZZ_TARGET=record .../examples/libfuzzer NEW_INPUTS tests/fuzz/corpus/record
//! ```
//! On nightly `-Zsanitizer=address` finds more. AFL needs no harness: `afl-fuzz ... croft-fuzz run record @@`.
//! What either finds goes to `regressions/TARGET`, after the fix.

#![cfg_attr(fuzzing, no_main)]

#[cfg(fuzzing)]
mod entry {
    use std::sync::LazyLock;

    use croft_fuzz::{Target, find};

    static TARGET: LazyLock<Target> = LazyLock::new(|| {
        let name = std::env::var("CROFT_FUZZ_TARGET").unwrap_or_default();
        find(&name)
            .unwrap_or_else(|| panic!("CROFT_FUZZ_TARGET='{name}' is no target: see `croft-fuzz list`"))
    });

    /// What libFuzzer calls for each input. A panic must end the process: unwinding into it is undefined.
    #[allow(unsafe_code, reason = "libFuzzer finds its target by this name and hands over a pointer")]
    // SAFETY: nothing else in this program has this name.
    #[unsafe(no_mangle)]
    extern "C" fn LLVMFuzzerTestOneInput(data: *const u8, size: usize) -> i32 {
        let input = if size == 0 {
            &[]
        } else {
            // SAFETY: libFuzzer promises `size` readable bytes at `data`, unchanged until this returns.
            unsafe { std::slice::from_raw_parts(data, size) }
        };
        let run = std::panic::AssertUnwindSafe(|| (TARGET.run)(input));
        if std::panic::catch_unwind(run).is_err() {
            std::process::abort();
        }
        0
    }
}

#[cfg(not(fuzzing))]
fn main() {
    eprintln!(
        "built without libFuzzer: its first lines say how; `croft-fuzz fuzz TARGET ROUNDS` needs nothing"
    );
}
