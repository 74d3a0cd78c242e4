//! Real programs with Lua states: luajit, whose LuaJIT is in the program itself, and nginx with the Lua module.

use super::{OPENRESTY, PLAIN, burst, look, rss};
use ebbtide_heaps::Figures;
use ebbtide_observe::Bytes;
use ebbtide_testkit::child::Child;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

#[test]
fn the_luajit_program_itself() {
    // The one that is installed, and those that are unpacked.
    let unpacked = [PLAIN, OPENRESTY].map(|flavour| flavour.tree().map(|tree| tree.join("usr/bin/luajit")));
    for program in unpacked.into_iter().flatten().chain([PathBuf::from("luajit")]) {
        let script = "print('@ready') for line in io.lines() do print('@ready ' .. tostring((loadstring(line)()))) end";
        let mut command = Command::new(&program);
        let Ok(version) = Command::new(&program).arg("-v").output() else {
            println!("skipped: {}: not installed", program.display());
            continue;
        };
        assert!(version.status.success());
        let mut child = Child::spawn(command.args(["-e", "io.stdout:setvbuf('line')", "-e", script]));
        child.ask(&burst(100_000).replace('\n', " "));
        child.ask("collectgarbage() collectgarbage()");
        let before = look(child.pid()).unwrap();
        // The code of the second question is the same as that of the first: it takes as much as it gives back.
        let count = "C = C or {} C[1] = collectgarbage('count') * 1024 return C[1]";
        child.ask(count);
        let total: f64 = child.ask(count).parse().unwrap();
        let found = look(child.pid()).unwrap();
        assert!(
            (found.arenas[0].collector.unwrap().total.0 as f64 - total).abs() < 2048.0,
            "{total} {found:?}"
        );
        let Figures { resident, live, returnable, .. } = before.figures;
        println!(
            "{} {}: {resident} resident, {live} live, {returnable} returnable",
            program.display(),
            found.version.unwrap()
        );
        assert!(returnable > Bytes::from_mib(20) && returnable + live <= resident + Bytes::from_mib(1));
        assert!(before.certainty.still);
    }
}

/// nginx with the Lua module, one process, on a socket in a directory of its own.
struct Nginx {
    child: Child,
    dir: tempfile::TempDir,
}

impl Nginx {
    /// Debian's module wants OpenResty's branch: it calls lua_setexdata.
    fn start() -> Option<Nginx> {
        let modules = Path::new("/usr/lib/nginx/modules");
        if !modules.join("ngx_http_lua_module.so").exists() {
            println!("skipped: nginx: libnginx-mod-http-lua is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display();
        let config = format!(
            "daemon off; master_process off; pid {path}/pid; error_log stderr error;
            load_module {0}/ndk_http_module.so; load_module {0}/ngx_http_lua_module.so;
            events {{}}
            http {{
                access_log off;
                client_body_temp_path {path}/1; proxy_temp_path {path}/2; fastcgi_temp_path {path}/3;
                uwsgi_temp_path {path}/4; scgi_temp_path {path}/5;
                init_worker_by_lua_block {{ io.stdout:write('@ready\\n') io.stdout:flush() }}
                server {{
                    listen unix:{path}/socket;
                    location / {{ content_by_lua_block {{
                        ngx.req.read_body()
                        ngx.say(assert(loadstring(ngx.req.get_body_data()))())
                    }} }}
                }}
            }}",
            modules.display()
        );
        std::fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let mut command = Command::new("setpriv");
        // It ends with this test: it does not read the standard input whose end would tell it.
        command
            .args(["--pdeathsig", "KILL", "nginx", "-e", "stderr", "-c"])
            .arg(dir.path().join("nginx.conf"));
        command.arg("-p").arg(dir.path());
        Some(Nginx { child: Child::spawn(&mut command), dir })
    }

    /// Runs `code` in the worker and returns what it returns.
    fn run(&self, code: &str) -> String {
        let mut stream = UnixStream::connect(self.dir.path().join("socket")).unwrap();
        let (length, head) = (code.len(), "POST / HTTP/1.0\r\nContent-Length:");
        write!(stream, "{head} {length}\r\n\r\n{code}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(" 200 "), "{answer}");
        body.trim().to_owned()
    }
}

#[test]
fn nginx_with_lua() {
    let Some(nginx) = Nginx::start() else { return };
    let pid = nginx.child.pid();
    for _ in 0..5 {
        nginx.run(
            "local kept = package.loaded.kept or {} package.loaded.kept = kept
                local all = {}
                for i = 1, 400000 do all[i] = { id = i, name = 'name ' .. i, tags = { 'a', 'b', i } } end
                for i = 400, 400000, 400 do kept[#kept + 1] = all[i] end
                return #kept",
        );
    }
    let (burst, burst_rss) = (look(pid).unwrap(), rss(pid));
    nginx.run("collectgarbage() collectgarbage()");
    let count: f64 = nginx.run("return collectgarbage('count') * 1024").parse().unwrap();
    let (after, after_rss) = (look(pid).unwrap(), rss(pid));
    println!("nginx, LuaJIT {}", after.version.as_deref().unwrap());
    for (when, heap, rss) in [("before", &burst, burst_rss), ("after", &after, after_rss)] {
        let Figures {
            mapped, resident, live, free, returnable, pinned_free, largest_free, free_chunks, ..
        } = heap.figures;
        println!(
            "{when} the collection: RSS {rss}; mapped {mapped}, resident {resident}, live {live}, free {free}, returnable {returnable}, pinned {pinned_free}, largest {largest_free} of {free_chunks}; {}",
            heap.notes[0]
        );
    }
    assert!(burst.figures.live > Bytes::from_mib(50));
    assert!(after.figures.live < Bytes::from_mib(8));
    assert!(after.figures.returnable > Bytes::from_mib(100));
    let total = after.arenas[0].collector.unwrap().total.0 as f64;
    assert!((total - count).abs() < 65536.0, "{total} {count}");
}
