//! Thousands of onsets and releases at random, over a real FIFO and a real socket, with readers that come now and then,
//! and others that begin and go meanwhile: no event is lost and none invented. `EBBTIDE_PRESSURE_SOAK=N` for N bursts (300
//! unless set), `EBBTIDE_PRESSURE_SEED=N` for the same ones again.
#![allow(clippy::expect_used, clippy::unwrap_used)]

use ebbtide_pressure::{Change, Event, Level, Options, Pressure};
use ebbtide_testkit::FakeRoot;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixListener;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const PATIENT: Option<Duration> = Some(Duration::from_secs(60));

/// A number from the environment.
fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// xorshift64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// What the service manager and the kernel do.
struct World {
    notes: Box<dyn Write>,
    psi: File,
}

impl World {
    /// Both texts are of one length and differ in one byte of each line, so that no reader finds half of one.
    fn stalled(&self, stalled: bool) {
        let avg10 = if stalled { "1.00" } else { "0.99" };
        let line = |who| format!("{who} avg10={avg10} avg60=0.00 avg300=0.00 total=1\n");
        self.psi.write_all_at((line("some") + &line("full")).as_bytes(), 0).unwrap();
    }

    fn note(&mut self) {
        self.notes.write_all(b"note").unwrap();
    }
}

/// A reader, and what it must have been told.
struct Reader {
    pressure: Pressure,
    knows: Level,
    told: u64,
}

impl Reader {
    fn check(&mut self, event: &Event) {
        assert_eq!(event.before, self.knows, "{event}");
        assert_ne!(event.change(), Change::Rise, "{event}");
        assert!(matches!(event.level, Level::None | Level::Medium), "{event}");
        self.knows = event.level;
        self.told += u64::from(event.merged);
    }

    /// Waits for the next event, which must be of that kind.
    fn expect(&mut self, kind: impl Fn(&Event) -> bool) {
        let event = self.pressure.wait(PATIENT).expect("an event");
        assert!(kind(&event) && event.merged == 1, "{event}");
        self.check(&event);
    }

    /// Reads what there is; whether there was a call to give back in it.
    fn catch_up(&mut self) -> bool {
        let events: Vec<Event> = std::iter::from_fn(|| self.pressure.try_next()).collect();
        assert!(events.len() <= 3, "{events:?}");
        events.iter().for_each(|event| self.check(event));
        events.iter().any(Event::is_call)
    }
}

/// Readers that begin at any moment, read a little in a thread of their own, and go.
fn pass_by(pressure: &Pressure, mut random: Random, over: &AtomicBool) {
    while !over.load(Relaxed) {
        let mut reader = Reader { pressure: pressure.try_clone().unwrap(), knows: Level::None, told: 0 };
        for _ in 0..random.below(20) {
            if let Some(event) = reader.pressure.wait(Some(Duration::from_micros(random.below(2000)))) {
                reader.check(&event);
            }
        }
    }
}

fn soak(way: &str, world: World, pressure: Pressure) {
    let seed = asked("EBBTIDE_PRESSURE_SEED")
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64 | 1);
    println!("{way}: EBBTIDE_PRESSURE_SEED={seed}");
    let over = AtomicBool::new(false);
    let passer_by = pressure.try_clone().unwrap();
    std::thread::scope(|scope| {
        for salt in 1..=2 {
            let (pressure, over) = (&passer_by, &over);
            scope.spawn(move || pass_by(pressure, Random(seed.wrapping_add(salt) | 1), over));
        }
        // Set whatever happens, or a failure would be waited for.
        let _over = Over(&over);
        bursts(way, Random(seed), world, pressure);
    });
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Bursts of notes; after each it is waited until the first reader was told that it is over. The others read at random,
/// and must find a call exactly if there was a burst since they last did.
fn bursts(way: &str, mut random: Random, mut world: World, pressure: Pressure) {
    let reader =
        |pressure: &Pressure| Reader { pressure: pressure.try_clone().unwrap(), knows: Level::None, told: 0 };
    let mut late: Vec<(Reader, bool)> = (0..4).map(|_| (reader(&pressure), false)).collect();
    // Readers are told in the order in which they began: when this one knows, all do.
    let mut first = reader(&pressure);
    late.push((Reader { pressure, knows: Level::None, told: 0 }, false));
    let bursts = asked("EBBTIDE_PRESSURE_SOAK").unwrap_or(300);
    for _ in 0..bursts {
        world.stalled(true);
        let notes = random.below(4);
        for _ in 0..notes {
            world.note();
            first.expect(Event::is_call);
        }
        if notes == 0 {
            // Relief may be there before the only note is heard.
            world.note();
            world.stalled(false);
            first.expect(Event::is_call);
        }
        world.stalled(false);
        first.expect(|event| event.change() == Change::Release);
        late.iter_mut().for_each(|(_, due)| *due = true);
        for (reader, due) in &mut late {
            if random.below(8) == 0 {
                assert_eq!(reader.catch_up(), std::mem::take(due));
                assert_eq!(reader.knows, Level::None);
            }
        }
    }
    for (reader, due) in &mut late {
        assert_eq!(reader.catch_up(), *due);
        assert_eq!((reader.knows, reader.told), (Level::None, first.told));
    }
    println!("{way}: {bursts} bursts, {} events to each of {} readers", first.told, late.len() + 1);
}

/// A machine whose PSI file can be changed in place, and a reader of what `watch` names.
fn open(watch: &str, make: impl Fn(&FakeRoot)) -> (FakeRoot, File, Pressure) {
    let zero = "avg10=0.00 avg60=0.00 avg300=0.00 total=1";
    let fake = FakeRoot::new().file("proc/pressure/memory", format!("some {zero}\nfull {zero}\n"));
    let psi = File::options().write(true).open(fake.path().join("proc/pressure/memory")).unwrap();
    make(&fake);
    let options = Options::new().root(fake.path()).variable("MEMORY_PRESSURE_WATCH", watch);
    let options =
        options.settle(Duration::ZERO).look_every(Duration::from_millis(1)).cooldown(Duration::ZERO);
    let pressure = Pressure::open(options).unwrap();
    assert_eq!(pressure.source().path().and_then(|path| path.to_str()), Some(watch));
    (fake, psi, pressure)
}

#[test]
fn over_a_fifo() {
    let mode = Mode::from_raw_mode(0o600);
    let make = |fake: &FakeRoot| mknodat(CWD, fake.path().join("fifo"), FileType::Fifo, mode, 0).unwrap();
    let (fake, psi, pressure) = open("/fifo", make);
    let notes = rustix::fs::open(fake.path().join("fifo"), OFlags::WRONLY, Mode::empty()).unwrap();
    soak("FIFO", World { notes: Box::new(File::from(notes)), psi }, pressure);
}

#[test]
fn over_a_socket() {
    let listener = std::cell::OnceCell::new();
    let bind =
        |fake: &FakeRoot| listener.set(UnixListener::bind(fake.path().join("socket")).unwrap()).unwrap();
    let (_fake, psi, pressure) = open("/socket", bind);
    let (manager, _) = listener.get().unwrap().accept().unwrap();
    soak("socket", World { notes: Box::new(manager), psi }, pressure);
}
