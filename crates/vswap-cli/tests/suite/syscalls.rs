//! The kernel reads and writes pages that are swapped out: each case plain and under vswap, where the
//! program itself asserts, by mincore, that its pages were gone just before the call.

use crate::support::{Job, Vswap};

/// D up to 8 MiB: what makes the pages go is the program's own MADV_PAGEOUT.
fn served(program: &str, arguments: &[&str]) {
    let job = Job::c(program, arguments);
    let plain = job.plain();
    job.compare_with(&plain, &Vswap::ram("32M"));
    job.compare_with(&plain, &Vswap::ram("32M").chaos(1));
}

macro_rules! cases {
    ($($test:ident: $program:literal $case:literal;)*) => {$(
        #[test]
        fn $test() {
            served($program, &[$case, env!("CARGO_TARGET_TMPDIR")]);
        }
    )*};
}

cases! {
    write_from_evicted_memory: "io" "write_to_a_file";
    read_into_evicted_memory: "io" "read_from_a_file";
    vectors_in_evicted_memory: "io" "vectors";
    direct_io_on_evicted_memory: "io" "direct";
    getrandom_into_evicted_memory: "io" "random_bytes";
    strings_and_structures_in_evicted_memory: "io" "strings_and_structures";
    poll_and_epoll_in_evicted_memory: "io" "waiting_calls";
    exec_with_evicted_arguments: "io" "exec_arguments";
    pipes_of_evicted_memory: "io" "pipes";
    vmspliced_pages_keep_their_content: "io" "vmspliced_pages";
    futex_words_that_are_evicted: "futex" "words";
    locks_in_memory_that_is_always_evicted: "futex" "primitives";
    priority_inheritance_in_evicted_memory: "futex" "priority_inheritance";
    futex_words_that_the_kernel_changes: "futex" "changed_words";
    robust_mutexes_in_evicted_memory: "futex" "robust";
    unix_streams_of_evicted_memory: "net" "unix_stream";
    unix_messages_in_evicted_memory: "net" "unix_messages";
    tcp_of_evicted_memory: "net" "tcp";
    zerocopy_pages_keep_their_content: "net" "zerocopy";
    io_uring_on_evicted_memory: "uring" "plain";
    io_uring_registered_buffers_stay: "uring" "registered";
}
