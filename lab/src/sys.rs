//! The system calls that rustix lacks and the incidents need, as small safe functions.
//!
//! Each is documented as "`call(args)`: what it does"; each returns the kernel's error with the call's name.
#![allow(unsafe_code)]

use anyhow::{Result, bail};
use ebbtide_observe::Bytes;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Signals that end a run: blocked, and read from [`signals`].
const STOPPING: [i32; 5] = [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGCHLD];

fn last(call: &str) -> Result<()> {
    bail!("{call}: {}", io::Error::last_os_error())
}

fn owned(fd: i64, call: &str) -> Result<OwnedFd> {
    if fd < 0 {
        last(call)?;
    }
    // SAFETY: the kernel has just returned this descriptor, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// `sigprocmask` of the signals that end a run and of SIGCHLD: blocks or unblocks them.
pub fn block_signals(block: bool) -> Result<()> {
    let how = if block { libc::SIG_BLOCK } else { libc::SIG_UNBLOCK };
    let set = stopping();
    // SAFETY: set is initialised; a null old set is allowed.
    if unsafe { libc::pthread_sigmask(how, &set, std::ptr::null_mut()) } != 0 {
        bail!("pthread_sigmask failed");
    }
    Ok(())
}

fn stopping() -> libc::sigset_t {
    // SAFETY: sigemptyset initialises the set; the signals are valid numbers.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in STOPPING {
            libc::sigaddset(&mut set, signal);
        }
        set
    }
}

/// `signalfd` of the blocked signals.
pub fn signals() -> Result<OwnedFd> {
    // SAFETY: the set is initialised.
    owned(unsafe { libc::signalfd(-1, &stopping(), libc::SFD_CLOEXEC) }.into(), "signalfd")
}

/// Reads one signal's number from [`signals`].
pub fn next_signal(fd: &OwnedFd) -> Result<i32> {
    let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
    rustix::io::read(fd, &mut info)?;
    Ok(i32::from_ne_bytes([info[0], info[1], info[2], info[3]]))
}

/// `fork()`: true in the child. Refused while the process has several threads, because only async-signal-safe
/// code may run in such a child.
pub fn fork() -> Result<Option<i32>> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        bail!("fork with {threads} threads");
    }
    // SAFETY: single-threaded (checked), so the child may run any code.
    match unsafe { libc::fork() } {
        -1 => last("fork").map(|()| None),
        0 => Ok(None),
        pid => Ok(Some(pid)),
    }
}

/// Whether `fork()` works now, as errno; the child ends at once. Unlike [`fork`] it may be called with
/// threads, since its child only calls `_exit`.
pub fn try_fork() -> std::result::Result<(), io::Error> {
    // SAFETY: the child calls nothing but _exit, which is async-signal-safe.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => exit(0),
        pid => {
            // SAFETY: a null status is allowed.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) };
            Ok(())
        }
    }
}

/// `_exit(code)`: ends this process without running destructors or flushing anything.
pub fn exit(code: i32) -> ! {
    // SAFETY: always sound.
    unsafe { libc::_exit(code) }
}

/// `pause()` for ever.
pub fn park() -> ! {
    loop {
        // SAFETY: always sound.
        unsafe { libc::pause() };
    }
}

/// `pause()` for ever, with `held` alive.
pub fn park_with<T>(held: &T) -> ! {
    std::hint::black_box(held);
    park()
}

/// `malloc_trim(0)`, where the C library is glibc.
pub fn malloc_trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: always sound.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// `waitid(pid, WEXITED | WNOHANG | WNOWAIT)`: whether child `pid` has ended; it stays to be reaped.
pub fn has_ended(pid: i32) -> bool {
    // SAFETY: info is a plain struct that the kernel fills.
    unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        libc::waitid(libc::P_PID, pid as libc::id_t, &mut info, options) != 0 || info.si_pid() == pid
    }
}

/// `waitpid(pid)`: reaps a child.
pub fn reap(pid: i32) {
    // SAFETY: a null status is allowed.
    while unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) } == -1
        && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
    {}
}

/// `dup2(file, to)` for one of the standard descriptors.
pub fn replace_stdio(file: &File, to: i32) -> Result<()> {
    assert!((0..=2).contains(&to));
    // SAFETY: std's own handles of 0..=2 are by number, so replacing what is behind them breaks no owner.
    if unsafe { libc::dup2(file.as_raw_fd(), to) } < 0 { last("dup2") } else { Ok(()) }
}

/// `setrlimit(resource, value, value)`.
pub fn set_rlimit(resource: u32, value: u64) -> Result<()> {
    let limit = libc::rlimit { rlim_cur: value, rlim_max: value };
    // SAFETY: limit is initialised.
    if unsafe { libc::setrlimit(resource as _, &limit) } != 0 { last("setrlimit") } else { Ok(()) }
}

/// `setresuid(uid, uid, uid)` after dropping supplementary groups, for a single-threaded process.
pub fn become_uid(uid: u32) -> Result<()> {
    // SAFETY: both only change this process's credentials.
    let failed = unsafe { libc::setgroups(0, std::ptr::null()) != 0 || libc::setresuid(uid, uid, uid) != 0 };
    if failed { last("setresuid") } else { Ok(()) }
}

/// `memfd_create(name)`.
pub fn memfd(name: &std::ffi::CStr) -> Result<File> {
    Ok(File::from(rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?))
}

/// `shmget(key, len, IPC_CREAT | IPC_EXCL | 0600)`: a new System V segment's id.
pub fn shm_create(key: i32, len: Bytes) -> Result<i32> {
    // SAFETY: always sound.
    let id = unsafe { libc::shmget(key, len.0 as usize, libc::IPC_CREAT | libc::IPC_EXCL | 0o600) };
    if id < 0 { last("shmget").map(|()| id) } else { Ok(id) }
}

/// `shmctl(IPC_RMID)` of the segment with `key`; none is as good as removed.
pub fn shm_remove(key: i32) -> Result<()> {
    // SAFETY: neither call touches memory of this process.
    unsafe {
        let id = libc::shmget(key, 0, 0);
        if id >= 0 && libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) != 0 {
            last("shmctl")?;
        }
    }
    Ok(())
}

/// `msgget(key)`: a new System V message queue's id.
pub fn msg_create(key: i32) -> Result<i32> {
    // SAFETY: always sound.
    let id = unsafe { libc::msgget(key, libc::IPC_CREAT | libc::IPC_EXCL | 0o600) };
    if id < 0 { last("msgget").map(|()| id) } else { Ok(id) }
}

/// `msgsnd(id, bytes, IPC_NOWAIT)`: whether there was room.
pub fn msg_send(id: i32, bytes: usize) -> Result<bool> {
    let mut message = vec![0x65_u64; bytes / 8 + 1];
    message[0] = 1;
    // SAFETY: the buffer holds the 8-byte type and `bytes` of text, rounded down to what it has.
    let sent = unsafe { libc::msgsnd(id, message.as_ptr().cast(), bytes / 8 * 8, libc::IPC_NOWAIT) };
    match (sent, io::Error::last_os_error().raw_os_error()) {
        (0, _) => Ok(true),
        (_, Some(libc::EAGAIN)) => Ok(false),
        _ => last("msgsnd").map(|()| false),
    }
}

/// `msgctl(IPC_RMID)` of the queue with `key`; none is as good as removed.
pub fn msg_remove(key: i32) -> Result<()> {
    // SAFETY: neither call touches memory of this process.
    unsafe {
        let id = libc::msgget(key, 0);
        if id >= 0 && libc::msgctl(id, libc::IPC_RMID, std::ptr::null_mut()) != 0 {
            last("msgctl")?;
        }
    }
    Ok(())
}

/// `setsockopt(fd, SOL_SOCKET, option, value)`.
pub fn set_socket_option(fd: &impl AsRawFd, option: i32, value: i32) -> Result<()> {
    let size = size_of::<i32>() as libc::socklen_t;
    // SAFETY: the option's value is an int of the given size.
    let set = unsafe {
        libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const value).cast(), size)
    };
    if set != 0 { last("setsockopt") } else { Ok(()) }
}

/// `ioctl(socket, SIOCOUTQ)`: bytes that the kernel holds for what was sent and not yet read, with their
/// bookkeeping (net/unix/af_unix.c, unix_outq_len).
pub fn out_queue(socket: &impl AsRawFd) -> Result<u64> {
    let mut queued: i32 = 0;
    // SAFETY: SIOCOUTQ (TIOCOUTQ) stores one int.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) };
    if done != 0 { last("SIOCOUTQ").map(|()| 0) } else { Ok(queued as u64) }
}

/// `socket(AF_PACKET)` bound to nothing, with `PACKET_RX_RING` of `len` in blocks of 1 MiB.
pub fn packet_ring(len: Bytes) -> Result<OwnedFd> {
    // linux/if_packet.h: SOL_PACKET 263, PACKET_RX_RING 5, struct tpacket_req { block_size, block_nr,
    // frame_size, frame_nr }.
    const BLOCK: u32 = 1 << 20;
    const FRAME: u32 = 2048;
    let blocks = (len.0 / u64::from(BLOCK)) as u32;
    let request: [u32; 4] = [BLOCK, blocks, FRAME, blocks * (BLOCK / FRAME)];
    // SAFETY: always sound.
    let socket =
        owned(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) }.into(), "socket(AF_PACKET)")?;
    let size = size_of_val(&request) as libc::socklen_t;
    // SAFETY: the option's value is a tpacket_req of the given size.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), 263, 5, request.as_ptr().cast(), size) };
    if set != 0 { last("PACKET_RX_RING").map(|()| socket) } else { Ok(socket) }
}

/// Raises RLIMIT_NOFILE to its hard limit.
pub fn raise_files() -> Result<()> {
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let most = rustix::process::Rlimit { current: hard, maximum: hard };
    Ok(rustix::process::setrlimit(rustix::process::Resource::Nofile, most)?)
}

/// `fcntl(pipe, F_SETPIPE_SZ, bytes)`: the size it got.
pub fn set_pipe_size(pipe: &impl AsRawFd, bytes: i32) -> Result<u64> {
    // SAFETY: F_SETPIPE_SZ takes an int.
    let size = unsafe { libc::fcntl(pipe.as_raw_fd(), libc::F_SETPIPE_SZ, bytes) };
    if size < 0 { last("F_SETPIPE_SZ").map(|()| 0) } else { Ok(size as u64) }
}

/// `bpf(BPF_MAP_CREATE)`: an array map of `entries` values of `value` bytes each.
pub fn bpf_array(entries: u32, value: u32) -> Result<OwnedFd> {
    // linux/bpf.h, union bpf_attr of BPF_MAP_CREATE: map_type, key_size, value_size, max_entries, map_flags.
    const ARRAY: u32 = 2;
    let attr: [u32; 12] = [ARRAY, 4, value, entries, 0, 0, 0, 0, 0, 0, 0, 0];
    // SAFETY: attr is initialised and as long as said.
    owned(unsafe { libc::syscall(libc::SYS_bpf, 0, attr.as_ptr(), size_of_val(&attr)) }, "bpf(MAP_CREATE)")
}

/// `bpf(BPF_OBJ_PIN)`: keeps `map` alive under `path` in a bpf file system.
pub fn bpf_pin(map: &OwnedFd, path: &std::ffi::CStr) -> Result<()> {
    // linux/bpf.h: pathname (u64), bpf_fd (u32), file_flags (u32).
    let mut attr = [0u8; 16];
    attr[..8].copy_from_slice(&(path.as_ptr() as u64).to_ne_bytes());
    attr[8..12].copy_from_slice(&map.as_raw_fd().to_ne_bytes());
    // SAFETY: attr is as long as said, and the path lives through the call.
    let pinned = unsafe { libc::syscall(libc::SYS_bpf, 6, attr.as_ptr(), size_of_val(&attr)) };
    if pinned != 0 { last("bpf(OBJ_PIN)") } else { Ok(()) }
}

/// `finit_module(file, parameters)`.
pub fn load_module(file: &File, parameters: &std::ffi::CStr) -> Result<()> {
    // SAFETY: the string lives through the call.
    let loaded = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
    if loaded != 0 { last("finit_module") } else { Ok(()) }
}

/// `delete_module(name)`; one that is not loaded is as good as removed.
pub fn unload_module(name: &std::ffi::CStr) -> Result<()> {
    // SAFETY: the string lives through the call.
    let done = unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), 0) };
    match io::Error::last_os_error().raw_os_error() {
        _ if done == 0 => Ok(()),
        Some(libc::ENOENT) => Ok(()),
        _ => last("delete_module"),
    }
}
