//! Real programs under the library: what they say must be what they say without it. Absent programs are skipped,
//! aloud. Each runs without the allocator's checks, with its invariants checked now and then, and without
//! magazines (every wrong free would be found).
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use support::{have, same, succeed, text, under};

#[test]
fn python() {
    let script = "
import json, re, threading, subprocess, gc, sys, ctypes, multiprocessing, zlib
def work(n):
    d = {str(i): [i, {'k': 'v' * (i % 300)}] for i in range(n)}
    s = json.dumps(d)
    assert json.loads(s) == d
    return len(re.findall('v+', s)), zlib.crc32(s.encode())
out = []
t = [threading.Thread(target=lambda: out.append(work(20000))) for _ in range(6)]
[x.start() for x in t]; [x.join() for x in t]
gc.collect()
print(sorted(out))
print(subprocess.check_output(['echo', 'child']))
b = ctypes.create_string_buffer(1 << 20)
ctypes.memset(b, 65, 1 << 19)
print(b.raw.count(b'A'))
if __name__ == '__main__':
    with multiprocessing.get_context('fork').Pool(3) as p: print(p.map(work, [1000, 2000, 3000]))
";
    same("python3", &["-c", script]);
}

#[test]
fn python_with_every_object_from_malloc() {
    if !have("python3") {
        return;
    }
    let script =
        "print(sum(len(str(i)) for i in range(300000)), sorted({i: str(i) for i in range(1000)})[:5])";
    let plain = succeed(Command::new("python3").args(["-c", script]));
    let ours = succeed(under("python3").args(["-c", script]).env("PYTHONMALLOC", "malloc"));
    assert_eq!(plain, ours);
}

#[test]
fn ruby() {
    same(
        "ruby",
        &["-e", "h = {}; 200000.times { |i| h[\"k#{i}\"] = [i] * 3 }; h.delete_if { |_, v| v[0] % 7 != 0 }; GC.start
            t = 4.times.map { |k| Thread.new { (0..20000).map { |i| (i * k).to_s }.join.hash != 0 } }
            p h.size, t.map(&:value), `echo child`"],
    );
}

#[test]
fn node() {
    same(
        "node",
        &["-e", "const {Worker, isMainThread} = require('worker_threads');
            let a = []; for (let i = 0; i < 300000; i++) a.push({i, s: 'x'.repeat(i % 50)});
            const b = Buffer.alloc(50e6, 7); console.log(a.length, b.reduce((x, y) => x + y, 0));
            new Worker('let m = new Map(); for (let i = 0; i < 1e5; i++) m.set(i, [i]); require(\"worker_threads\").parentPort.postMessage(m.size)', {eval: true}).on('message', n => console.log(n));"],
    );
}

#[test]
fn php() {
    // Debian's php opens its extensions with RTLD_DEEPBIND.
    same(
        "php",
        &[
            "-r",
            "$a = []; for ($i = 0; $i < 300000; $i++) $a[] = \"x$i\"; echo count($a), md5(implode($a)), class_exists('PDO') ? 1 : 0;",
        ],
    );
}

#[test]
fn sqlite() {
    same("sqlite3", &[":memory:", "create table t(a, b); with recursive c(x) as (select 1 union all select x + 1 from c
        where x < 200000) insert into t select x, hex(x * 7) from c; create index i on t(b);
        select count(*), sum(length(b)), max(b) from t; delete from t where a % 3; vacuum; select count(*) from t;"]);
}

#[test]
fn java() {
    if !have("java") || !have("javac") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("Main.java");
    std::fs::write(
        &source,
        "import java.util.*; import java.util.zip.*;
        public class Main { public static void main(String[] a) throws Exception {
            Thread[] t = new Thread[8]; long[] sums = new long[8];
            for (int k = 0; k < 8; k++) { int n = k; t[k] = new Thread(() -> {
                for (int i = 0; i < 200; i++) { Deflater d = new Deflater(); d.setInput(new byte[100000]); d.finish();
                    sums[n] += d.deflate(new byte[2000]); d.end();
                    java.nio.ByteBuffer.allocateDirect(50000).put(5, (byte) 1); } }); t[k].start(); }
            for (Thread x : t) x.join();
            System.out.println(Arrays.toString(sums)); } }",
    )
    .unwrap();
    let run = |command: &mut Command| succeed(command.arg("-Xmx256m").arg(&source));
    assert_eq!(run(&mut Command::new("java")), run(&mut under("java")));
}

#[test]
fn gcc_compiles_to_the_same_bytes() {
    if !have("gcc") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let functions: String = (0..400)
        .map(|i| format!("int f{i}(int *p, int n) {{ int s = {i}; for (int i = 0; i < n; i++) s += p[i] * s; return s; }}\n"))
        .collect();
    std::fs::write(dir.path().join("large.c"), functions).unwrap();
    let object = |command: &mut Command, name: &str| {
        succeed(command.current_dir(dir.path()).args(["-O2", "-c", "large.c", "-o", name]));
        std::fs::read(dir.path().join(name)).unwrap()
    };
    assert_eq!(object(&mut Command::new("gcc"), "plain.o"), object(&mut under("gcc"), "ours.o"));
}

#[test]
fn git() {
    if !have("git") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let git = |args: &[&str]| succeed(under("git").current_dir(dir.path()).args(args));
    git(&["init", "--quiet"]);
    for i in 0..40 {
        for f in 0..10 {
            std::fs::write(dir.path().join(format!("{f}")), format!("{i} {f}\n").repeat(500 + i * f))
                .unwrap();
        }
        git(&["add", "."]);
        git(&["-c", "user.name=a", "-c", "user.email=a@b", "commit", "--quiet", "-m", &i.to_string()]);
    }
    git(&["gc", "--quiet", "--aggressive"]);
    git(&["fsck", "--strict", "--no-progress"]);
    let log = ["log", "--stat", "-p"];
    assert_eq!(succeed(Command::new("git").current_dir(dir.path()).args(log)), git(&log));
}

#[test]
fn stress_ng() {
    if !have("stress-ng") {
        return;
    }
    for extra in [
        &["--malloc-thresh", "64k"][..],
        &["--malloc-pthreads", "4", "--malloc-touch"],
        &["--malloc-bytes", "64m"],
    ] {
        let mut command = under("stress-ng");
        succeed(
            command
                .args(["--malloc", "2", "--malloc-ops", "20000", "--verify", "--timeout", "60"])
                .args(extra),
        );
    }
}

/// A child that is killed when the test is over, however.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads a server's standard output until a line that contains `ready`.
fn wait_for(server: &mut Server, ready: &str) {
    let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines();
    let mut seen = String::new();
    let found = lines.by_ref().map_while(Result::ok).any(|line| {
        seen.push_str(&line);
        line.contains(ready)
    });
    assert!(found, "never said {ready:?}: {seen}");
    // Keeps the pipe empty for as long as the server talks.
    std::thread::spawn(move || lines.count());
}

#[test]
fn redis() {
    if !have("redis-server") || !have("redis-benchmark") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("socket");
    let mut command = under("redis-server");
    command
        .current_dir(dir.path())
        .args(["--port", "0", "--save", "", "--enable-debug-command", "yes", "--unixsocket"])
        .arg(&socket);
    let mut server = Server(command.stdout(Stdio::piped()).spawn().unwrap());
    wait_for(&mut server, "eady to accept connections");
    let cli = |args: &[&str]| succeed(Command::new("redis-cli").arg("-s").arg(&socket).args(args));
    let bench = ["-q", "-n", "20000", "-r", "5000", "-t", "set,lpush,hset,sadd,zadd,mset,lrange_100"];
    succeed(Command::new("redis-benchmark").arg("-s").arg(&socket).args(bench));
    cli(&["debug", "populate", "100000", "key", "300"]);
    let before = cli(&["debug", "digest"]);
    assert!(cli(&["save"]).contains("OK"));
    assert!(cli(&["debug", "reload"]).contains("OK"));
    assert_eq!(before, cli(&["debug", "digest"]));
    assert!(cli(&["flushall"]).contains("OK"));
    assert_eq!(cli(&["dbsize"]).trim(), "0");
    let _ = Command::new("redis-cli").arg("-s").arg(&socket).args(["shutdown", "nosave"]).status();
    assert!(server.0.wait().unwrap().success());
}

#[test]
fn nginx() {
    if !have("nginx") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    std::fs::write(dir.path().join("page"), "hello from a page\n".repeat(5000)).unwrap();
    let conf = format!(
        "daemon off; master_process on; worker_processes 2; pid {at}/pid; error_log stderr notice;
        events {{}} http {{ access_log off; gzip on; gzip_types *; client_body_temp_path {at}/b; proxy_temp_path {at}/p;
        fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;
        server {{ listen unix:{at}/socket; root {at}; }} }}"
    );
    std::fs::write(dir.path().join("conf"), if is_root() { format!("user root; {conf}") } else { conf })
        .unwrap();
    let mut command = under("nginx");
    command.args(["-e", "stderr", "-p"]).arg(dir.path()).arg("-c").arg(dir.path().join("conf"));
    let mut server = Server(command.stderr(Stdio::piped()).spawn().unwrap());
    let mut log = BufReader::new(server.0.stderr.take().unwrap()).lines();
    let mut say =
        |what: &str| assert!(log.by_ref().map_while(Result::ok).any(|l| l.contains(what)), "never {what}");
    say("start worker process");
    let body = std::fs::read_to_string(dir.path().join("page")).unwrap();
    for round in 0..300 {
        if round == 150 {
            let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
            succeed(Command::new("kill").args(["-HUP", pid.trim()]));
            say("exited with code 0");
        }
        assert!(get(&dir.path().join("socket"), "/page").ends_with(&body));
    }
    let pid = std::fs::read_to_string(dir.path().join("pid")).unwrap();
    succeed(Command::new("kill").args(["-QUIT", pid.trim()]));
    assert!(server.0.wait().unwrap().success());
}

fn get(socket: &Path, path: &str) -> String {
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

fn is_root() -> bool {
    succeed(Command::new("id").arg("-u")).trim() == "0"
}

#[test]
fn postgres() {
    let Some(bin) =
        ["/usr/lib/postgresql/15/bin", "/usr/lib/postgresql/17/bin"].iter().find(|d| Path::new(d).exists())
    else {
        println!("skipped: postgresql is not installed");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().to_str().unwrap();
    let library = support::library();
    // Where the server's user can read it, whatever the workspace's permissions.
    let ours = dir.path().join("malloc.so");
    std::fs::copy(library, &ours).unwrap();
    let as_user = |script: String| {
        let mut command = if is_root() {
            succeed(Command::new("chown").args(["-R", "postgres", at]));
            let mut command = Command::new("setpriv");
            command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", "sh", "-c"]);
            command
        } else {
            let mut command = Command::new("sh");
            command.arg("-c");
            command
        };
        command.arg(script).current_dir(at).env("LD_PRELOAD", &ours).env("EBBTIDE_MALLOC_CHECK", "1");
        succeed(&mut command)
    };
    as_user(format!("{bin}/initdb -D {at}/data -A trust -N >/dev/null"));
    as_user(format!(
        "{bin}/pg_ctl -D {at}/data -w -o \"-k {at} -c listen_addresses= -c fsync=off\" -l {at}/log start"
    ));
    let answer = as_user(format!(
        "createdb -h {at} b && pgbench -h {at} -i -s 2 -q b 2>&1 && pgbench -h {at} -c 4 -j 2 -t 300 b && \
         psql -h {at} -At -c 'select count(*), sum(tbalance) = sum((select sum(bbalance) from pgbench_branches) / 20) \
         from pgbench_tellers' b && psql -h {at} -At -c 'select count(*) from pgbench_history' b; \
         {bin}/pg_ctl -D {at}/data -m fast stop"
    ));
    assert!(answer.contains("1200/1200") && answer.contains("\n1200\n"), "{answer}");
}

#[test]
fn shell_tools() {
    same(
        "sh",
        &[
            "-c",
            "ls / | sort | head -3; seq 1 50000 | sort -rn | uniq | wc -l; printf 'x%.0s' $(seq 1 3000) | wc -c",
        ],
    );
    same(
        "perl",
        &[
            "-e",
            "my %h; $h{$_ % 5000} .= $_ for 1..300000; print scalar(keys %h), length(join '', values %h)",
        ],
    );
}

/// The library holds no unwinder and no std, so nothing of it can unwind or allocate by other ways.
#[test]
fn nothing_unwinds() {
    if !have("nm") {
        return;
    }
    let output =
        Command::new("nm").args(["-D", "--undefined-only"]).arg(support::library()).output().unwrap();
    let needed = text(&output);
    assert!(needed.contains("memset") && !needed.contains("_Unwind"), "{needed}");
    assert!(!needed.contains("__tls_get_addr"), "{needed}");
}
