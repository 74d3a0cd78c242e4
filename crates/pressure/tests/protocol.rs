//! The service manager's FIFO and socket, spoken to as systemd's protocol says, and every way in which they end.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use ebbtide_pressure::{Change, Event, Kind, Level, Next, Options, Pressure};
use ebbtide_testkit::FakeRoot;
use rustix::event::{PollFd, PollFlags, epoll, poll};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use std::fs::File;
use std::future::Future;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::pin::Pin;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

const PATIENT: Option<Duration> = Some(Duration::from_secs(60));
/// `some 200000 2000000\0`
const WRITE: &str = "c29tZSAyMDAwMDAgMjAwMDAwMAA=";
const WRITTEN: &[u8] = b"some 200000 2000000\0";

fn psi(avg10: &str) -> String {
    format!(
        "some avg10={avg10} avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n"
    )
}

/// A machine on which only the host's PSI tells of relief, and cannot be taken for a source by mistake.
fn machine() -> FakeRoot {
    FakeRoot::new().file("proc/pressure/memory", psi("0.00"))
}

fn fifo(fake: &FakeRoot) {
    let mode = Mode::from_raw_mode(0o600);
    mknodat(CWD, fake.path().join("fifo"), FileType::Fifo, mode, 0).unwrap();
}

/// A writer that comes and goes, as `echo >fifo` does.
fn note(fake: &FakeRoot) {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK;
    let fd = rustix::fs::open(fake.path().join("fifo"), flags, Mode::empty()).unwrap();
    File::from(fd).write_all(b"x").unwrap();
}

/// A reader that settles at once.
fn options(fake: &FakeRoot, watch: &str) -> Options {
    let options = Options::new().root(fake.path()).variable("MEMORY_PRESSURE_WATCH", watch);
    options.settle(Duration::ZERO).look_every(Duration::from_millis(1)).cooldown(Duration::ZERO)
}

fn open(fake: &FakeRoot, watch: &str, kind: Kind) -> Pressure {
    let pressure = Pressure::open(options(fake, watch)).unwrap();
    assert_eq!(pressure.source().kind(), kind, "{:?}", pressure.passed_over());
    pressure
}

/// A machine whose tasks stalled so much, and a reader of its FIFO.
fn on_fifo(avg10: &str) -> (FakeRoot, Pressure) {
    let fake = machine();
    fake.set("proc/pressure/memory", psi(avg10));
    fifo(&fake);
    let pressure = open(&fake, "/fifo", Kind::SystemdFifo);
    (fake, pressure)
}

/// A reader that writes the trigger to what it watches.
fn open_greeting(fake: &FakeRoot, watch: &str) -> Pressure {
    Pressure::open(options(fake, watch).variable("MEMORY_PRESSURE_WRITE", WRITE)).unwrap()
}

fn expect(pressure: &Pressure, change: Change) {
    let event = pressure.wait(PATIENT).expect("an event");
    assert_eq!(event.change(), change, "{event}");
}

/// Waits, with an end, for what has no event: another source.
fn until(pressure: &Pressure, kind: Kind) {
    until_doing(pressure, kind, || ());
}

/// The same, doing something all the while.
fn until_doing(pressure: &Pressure, kind: Kind, mut meanwhile: impl FnMut()) {
    let end = Instant::now() + Duration::from_secs(60);
    while pressure.source().kind() != kind {
        assert!(Instant::now() < end, "still {}", pressure.source());
        meanwhile();
        assert_eq!(pressure.wait(Some(Duration::from_millis(2))), None);
    }
}

fn is_ready(pressure: &Pressure) -> bool {
    poll(&mut [PollFd::new(pressure, PollFlags::IN)], Some(&rustix::event::Timespec::default())).unwrap() == 1
}

#[test]
fn a_fifo_tells_again_and_again() {
    let (fake, pressure) = on_fifo("0.00");
    for _ in 0..3 {
        fake.set("proc/pressure/memory", psi("5.00"));
        note(&fake);
        expect(&pressure, Change::Onset);
        assert_eq!(pressure.level(), Level::Medium);
        note(&fake);
        expect(&pressure, Change::Still);
        fake.set("proc/pressure/memory", psi("0.99"));
        expect(&pressure, Change::Release);
        assert_eq!((pressure.level(), pressure.try_next()), (Level::None, None));
    }
}

/// A FIFO has one end for all: what is written as a greeting comes back, and is no pressure.
#[test]
fn the_own_greeting_is_no_note() {
    let fake = machine();
    fifo(&fake);
    let pressure = open_greeting(&fake, "/fifo");
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let peek = rustix::fs::open(fake.path().join("fifo"), flags, Mode::empty()).unwrap();
    let end = Instant::now() + Duration::from_secs(60);
    while rustix::io::ioctl_fionread(&peek).unwrap() > 0 {
        assert!(Instant::now() < end, "the greeting was not read back");
        assert_eq!(pressure.wait(Some(Duration::from_millis(2))), None);
    }
    assert_eq!((pressure.try_next(), pressure.level()), (None, Level::None));
    fake.set("proc/pressure/memory", psi("5.00"));
    note(&fake);
    expect(&pressure, Change::Onset);
}

/// What was in the FIFO before anybody listened is not lost.
#[test]
fn a_note_may_come_before_its_reader() {
    let fake = machine();
    fake.set("proc/pressure/memory", psi("5.00"));
    fifo(&fake);
    let _held = rustix::fs::open(fake.path().join("fifo"), OFlags::RDWR, Mode::empty()).unwrap();
    note(&fake);
    let pressure = open_greeting(&fake, "/fifo");
    expect(&pressure, Change::Onset);
}

#[test]
fn a_socket_is_greeted_and_heard() {
    let fake = machine();
    let listener = UnixListener::bind(fake.path().join("socket")).unwrap();
    let pressure = open_greeting(&fake, "/socket");
    assert_eq!(pressure.source().kind(), Kind::SystemdSocket);
    let (mut manager, _) = listener.accept().unwrap();
    let mut greeting = [0; WRITTEN.len()];
    manager.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting, WRITTEN);
    fake.set("proc/pressure/memory", psi("5.00"));
    manager.write_all(&[b'!'; 100_000]).unwrap();
    expect(&pressure, Change::Onset);
    fake.set("proc/pressure/memory", psi("0.00"));
    loop {
        // As much as that may be heard in pieces.
        let event = pressure.wait(PATIENT).unwrap();
        if event.change() == Change::Release {
            break;
        }
        assert_eq!(event.change(), Change::Still);
    }
}

/// A last note and the end of the stream at once: the note is told, and the next best source is taken.
#[test]
fn a_socket_that_ends_is_not_waited_on() {
    let fake = machine().file("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 900 kB\n");
    let path = fake.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let pressure = open(&fake, "/socket", Kind::SystemdSocket);
    let (mut manager, _) = listener.accept().unwrap();
    drop(listener);
    std::fs::remove_file(path).unwrap();
    fake.set("proc/pressure/memory", "gone");
    manager.write_all(b"!").unwrap();
    drop(manager);
    expect(&pressure, Change::Onset);
    expect(&pressure, Change::Release);
    until(&pressure, Kind::HostAvailable);
    let first = pressure.passed_over().remove(0);
    assert_eq!(first.source().kind(), Kind::SystemdFile, "{first}");
}

/// A manager that is restarted is found again, one that hangs up at once is left.
#[test]
fn a_socket_is_connected_anew_but_not_for_ever() {
    let fake = machine();
    let path = fake.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let pressure = open(&fake, "/socket", Kind::SystemdSocket);
    let first = listener.accept().unwrap();
    // Connections are a second apart: one of a shorter life is taken for a manager's that does not want us.
    assert_eq!(pressure.wait(Some(Duration::from_millis(1100))), None);
    drop(first);
    let second = listener.accept().unwrap();
    drop(second);
    // Who is slow to see the second end may find that it lived for a second, too, and connect once more.
    listener.set_nonblocking(true).unwrap();
    until_doing(&pressure, Kind::HostTrigger, || drop(listener.accept()));
    let lost = pressure.passed_over().remove(0);
    assert_eq!(lost.source().kind(), Kind::SystemdSocket);
    assert_eq!(lost.why().to_string(), "lost: the other end was closed");
    assert!(listener.accept().is_err(), "what was lost is not touched again");
}

#[test]
fn a_path_may_be_longer_than_an_address() {
    let fake = machine();
    let name = format!("{}/{}", "d".repeat(100), "e".repeat(100));
    let fake = fake.dir(&name);
    let dir = rustix::fs::open(fake.path().join(&name), OFlags::PATH, Mode::empty()).unwrap();
    let by_way = format!("/proc/self/fd/{}/socket", std::os::fd::AsRawFd::as_raw_fd(&dir));
    let listener = UnixListener::bind(by_way).unwrap();
    let pressure = open(&fake, &format!("/{name}/socket"), Kind::SystemdSocket);
    listener.accept().unwrap();
    drop(pressure);
}

#[test]
fn what_cannot_be_used_is_said_and_not_touched() {
    let fake = machine().file("plain", "precious").dir("dir");
    drop(UnixListener::bind(fake.path().join("dead")).unwrap());
    for (watch, why) in [
        ("/plain", "it is no PSI file"),
        ("/dir", "neither a regular file nor a FIFO nor a socket"),
        ("/missing", "it is not there"),
        ("/plain/inside", "it is not there"),
        ("plain", "no absolute path"),
        ("/dead", "Connection refused"),
    ] {
        // Arming a trigger wrote over it.
        fake.set("proc/pressure/memory", psi("0.00"));
        let pressure = open_greeting(&fake, watch);
        assert_eq!(pressure.source().kind(), Kind::HostTrigger, "{watch}");
        let said = pressure.passed_over().remove(0).to_string();
        assert!(said.contains(why) && said.contains(watch), "{said}");
    }
    assert_eq!(std::fs::read(fake.path().join("plain")).unwrap(), b"precious");
    let nonsense = options(&fake, "/dead").variable("MEMORY_PRESSURE_WRITE", "=$");
    assert!(Pressure::open(nonsense).unwrap().passed_over()[0].to_string().contains("no base64"));
}

/// The trigger is written as it was given, with the NUL that the kernel needs.
#[test]
fn a_psi_file_needs_a_trigger() {
    let fake = machine().file("psi", psi("0.00"));
    let said = |write: Option<&str>| {
        let options = options(&fake, "/psi");
        let write = write.map(|write| options.clone().variable("MEMORY_PRESSURE_WRITE", write));
        let pressure = Pressure::open(write.unwrap_or(options)).unwrap();
        (
            pressure.source().kind(),
            pressure.passed_over().first().map(ToString::to_string).unwrap_or_default(),
        )
    };
    assert!(said(None).1.contains("without MEMORY_PRESSURE_WRITE"));
    // "hello"
    assert!(said(Some("aGVsbG8=")).1.contains("no trigger"));
    assert_eq!(
        said(Some("c29tZSAyMDAwMDAgMjAwMDAwMA==")),
        (Kind::SystemdFile, String::new()),
        "without a NUL"
    );
    assert!(std::fs::read(fake.path().join("psi")).unwrap().starts_with(WRITTEN));
}

/// The reader's descriptor: readable exactly while there is something, also nested in an epoll set.
#[test]
fn the_descriptor_says_when_there_is_something() {
    let (fake, pressure) = on_fifo("5.00");
    let (inner, outer) =
        (epoll::create(epoll::CreateFlags::CLOEXEC), epoll::create(epoll::CreateFlags::CLOEXEC));
    let (inner, outer) = (inner.unwrap(), outer.unwrap());
    epoll::add(&inner, &pressure, epoll::EventData::new_u64(1), epoll::EventFlags::IN).unwrap();
    epoll::add(&outer, &inner, epoll::EventData::new_u64(2), epoll::EventFlags::IN).unwrap();
    assert!(!is_ready(&pressure));
    note(&fake);
    let mut heard = Vec::with_capacity(1);
    epoll::wait(&outer, rustix::buffer::spare_capacity(&mut heard), None).unwrap();
    assert!(is_ready(&pressure) && is_ready(&pressure), "as long as nobody reads");
    assert_eq!(pressure.try_next().map(|event| event.level), Some(Level::Medium));
    assert!(!is_ready(&pressure));
    fake.set("proc/pressure/memory", psi("0.00"));
    poll(&mut [PollFd::new(&pressure, PollFlags::IN)], None).unwrap();
    expect(&pressure, Change::Release);
    assert!(!is_ready(&pressure));
}

#[test]
fn readers_do_not_take_from_each_other() {
    let (fake, first) = on_fifo("5.00");
    let second = first.try_clone().unwrap();
    note(&fake);
    expect(&first, Change::Onset);
    // One that comes later is told that there is pressure; one that is dropped is missed by nobody.
    let third = first.try_clone().unwrap();
    expect(&third, Change::Onset);
    drop(first);
    fake.set("proc/pressure/memory", psi("0.00"));
    expect(&third, Change::Release);
    expect(&second, Change::Onset);
    expect(&second, Change::Release);
    assert_eq!(
        second.try_clone().unwrap().try_next(),
        None,
        "what is over is told to nobody who was not there"
    );
}

#[tokio::test(flavor = "current_thread")]
async fn a_task_is_woken() {
    let (fake, pressure) = on_fifo("5.00");
    // Given up again and again, as select! does.
    for _ in 0..3 {
        let nothing = tokio::time::timeout(Duration::from_millis(1), pressure.next()).await;
        assert!(nothing.is_err());
    }
    note(&fake);
    assert_eq!(pressure.next().await.change(), Change::Onset);
    let waiting = tokio::spawn(async move { pressure.next().await.change() });
    tokio::task::yield_now().await;
    fake.set("proc/pressure/memory", psi("0.00"));
    assert_eq!(waiting.await.unwrap(), Change::Release);
}

/// As select! does, over and over: each time as another task.
#[test]
fn who_is_given_up_leaves_no_waker() {
    struct Task;
    impl Wake for Task {
        fn wake(self: Arc<Task>) {}
    }
    let (fake, pressure) = on_fifo("5.00");
    let mut stays = pressure.next();
    let poll = |next: &mut Next<'_>| {
        let task = Arc::new(Task);
        let waker = Waker::from(Arc::clone(&task));
        assert!(Pin::new(next).poll(&mut Context::from_waker(&waker)).is_pending());
        task
    };
    let first = poll(&mut stays);
    let given_up: Vec<_> = (0..1000).map(|_| poll(&mut pressure.next())).collect();
    assert!(given_up.iter().all(|task| Arc::strong_count(task) == 1));
    // One that goes to another task leaves the first.
    assert_eq!(Arc::strong_count(&first), 2);
    let second = poll(&mut stays);
    assert_eq!([&first, &second].map(Arc::strong_count), [1, 2]);
    drop(stays);
    assert_eq!(Arc::strong_count(&second), 1);
    note(&fake);
    assert_eq!(pressure.wait(PATIENT).unwrap().change(), Change::Onset);
}

/// A task that owns the last reader, and is dropped where it is woken: in the watcher's own thread, which must not wait
/// for itself.
#[test]
fn the_thread_may_drop_the_last_reader() {
    type Waiting = Pin<Box<dyn Future<Output = Event> + Send>>;
    struct Task(Mutex<Option<(Waiting, Sender<()>)>>);
    impl Wake for Task {
        fn wake(self: Arc<Task>) {
            let (waiting, done) = self.0.lock().unwrap().take().unwrap();
            drop(waiting);
            done.send(()).unwrap();
        }
    }
    let (fake, pressure) = on_fifo("0.00");
    let (send, receive) = channel();
    let task = Arc::new(Task(Mutex::new(None)));
    let waker = Waker::from(Arc::clone(&task));
    let mut waiting: Waiting = Box::pin(async move { pressure.next().await });
    assert!(waiting.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    *task.0.lock().unwrap() = Some((waiting, send));
    note(&fake);
    receive.recv_timeout(Duration::from_secs(60)).unwrap();
}
