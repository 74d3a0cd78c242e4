//! Programs with unusual habits: destructors that free, forks from threads, exhausted memory, signals that stop
//! a thread inside malloc. Each runs as it is and with the allocator's own checks at two levels.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;
use support::{compile, succeed, under};

fn quirk(name: &str) {
    let Some((_dir, program)) = compile("quirks.cc", &["-ldl"]) else { return };
    for level in ["0", "1", "2"] {
        let mut command = under(&program);
        command.arg(name).env("EBBTIDE_MALLOC_CHECK", level);
        // So that giving back happens in the midst of it.
        for delay in ["500", "2"] {
            let said = succeed(command.env("EBBTIDE_MALLOC_DELAY_MS", delay));
            assert_eq!(said, "ok\n", "{name} at check level {level}, delay {delay}");
        }
    }
}

macro_rules! quirks {
    ($($test:ident $name:literal)*) => { $(#[test] fn $test() { quirk($name); })* };
}

quirks! {
    destructors_of_threads_free_and_allocate "tls-destructors"
    threads_come_and_go_by_the_thousand "many-threads"
    fork_from_many_threads "fork-from-threads"
    vfork_posix_spawn_and_popen "vfork-and-spawn"
    libraries_come_and_go "dlopen-close"
    exceptions_and_longjmp "throw-and-jump"
    address_space_limited_by_the_program_itself "limit-address-space"
    data_limited "limit-data"
    no_mapping_more_to_be_had "mappings"
    memory_locked "locked"
    blocks_freed_by_other_threads "cross-thread"
    signals_stop_threads_inside "signals-inside"
    descriptors_closed_by_the_program "closes-everything"
}
