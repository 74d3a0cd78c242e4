//! nginx with the Lua module: the program that this project began with.
//!
//! Invariants: it is ready when there is an [`Nginx`]; it ends with its test, whatever becomes of that, its workers
//! with it. Failures panic, as tests do.
#![allow(clippy::expect_used)]

use crate::child::Child;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Where Debian's packages put nginx's modules.
const MODULES: &str = "/usr/lib/nginx/modules";

/// nginx with the Lua module, on a socket in a directory of its own. Ends when dropped.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    port: Option<u16>,
    dir: tempfile::TempDir,
}

/// What an nginx shall serve, as parts of its configuration.
#[derive(Debug, Default)]
pub struct Plan {
    /// Worker processes under a master; 0: one process that is both.
    pub workers: u32,
    /// Directives of the http block.
    pub http: String,
    /// Directives of the server block: locations.
    pub server: String,
    /// Lua code that each worker begins with.
    pub init_worker: String,
    /// Also listen on a port of 127.0.0.1, for clients that know no sockets in files.
    pub tcp: bool,
}

impl Nginx {
    /// One process that runs whatever code it is posted; nothing, visibly, where the module is not installed.
    pub fn start() -> Option<Nginx> {
        let server = "location / { content_by_lua_block {
            ngx.req.read_body()
            ngx.say(assert(loadstring(ngx.req.get_body_data()))())
        } }";
        Nginx::serve(&Plan { server: server.into(), ..Plan::default() }, |_| ())
    }

    /// Starts it as planned, with `prepare` done to its command, and waits until all workers take requests; nothing,
    /// visibly, where the module is not installed. Debian's module wants OpenResty's branch of LuaJIT: it calls
    /// lua_setexdata.
    pub fn serve(plan: &Plan, prepare: impl FnOnce(&mut Command)) -> Option<Nginx> {
        if !Path::new(MODULES).join("ngx_http_lua_module.so").exists() {
            println!("skipped: nginx: libnginx-mod-http-lua is not installed");
            return None;
        }
        let dir = tempfile::tempdir().expect("nginx");
        let port = plan.tcp.then(free_port);
        std::fs::write(dir.path().join("nginx.conf"), config(plan, dir.path(), port)).expect("nginx");
        let mut command = Command::new("setpriv");
        // It ends with this test: it does not read the standard input whose end would tell it. TERM, as a killed master
        // would leave its workers behind.
        command.args(["--pdeathsig", "TERM", "nginx", "-e"]).arg(dir.path().join("error.log"));
        command.arg("-c").arg(dir.path().join("nginx.conf")).arg("-p").arg(dir.path());
        prepare(&mut command);
        let mut nginx = Nginx { child: Child::spawn(&mut command), port, dir };
        for _ in 1..plan.workers {
            nginx.await_worker();
        }
        Some(nginx)
    }

    /// Waits until another worker takes requests; its pid.
    pub fn await_worker(&mut self) -> u32 {
        self.child.listen();
        self.child.said().parse().expect("nginx")
    }

    /// Runs `code` as a request and returns what it returns.
    pub fn run(&self, code: &str) -> String {
        self.request("POST", "/", code)
    }

    /// Asks for `path`; the body of the answer, which must be a good one.
    pub fn get(&self, path: &str) -> String {
        self.request("GET", path, "")
    }

    fn request(&self, method: &str, path: &str, body: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).expect("nginx");
        write!(stream, "{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len())
            .expect("nginx");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("nginx");
        let (head, body) = answer.split_once("\r\n\r\n").expect("nginx");
        assert!(head.contains(" 200 "), "{answer}");
        body.trim().to_owned()
    }

    /// Its pid: the master's, where there are workers.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// The pids of its processes beside the master: workers, and what those started.
    pub fn workers(&self) -> Vec<u32> {
        let children = format!("/proc/{0}/task/{0}/children", self.pid());
        let children = std::fs::read_to_string(children).expect("nginx");
        children.split_whitespace().map(|pid| pid.parse().expect("nginx")).collect()
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    /// Its port, where one was planned.
    pub fn port(&self) -> Option<u16> {
        self.port
    }

    /// What it has logged so far: warnings and worse.
    pub fn errors(&self) -> String {
        let log = std::fs::read(self.dir.path().join("error.log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// A request that builds 400,000 tables and keeps every 400th.
    pub fn burst(&self) {
        self.run(
            "local kept = package.loaded.kept or {} package.loaded.kept = kept
                local all = {}
                for i = 1, 400000 do all[i] = { id = i, name = 'name ' .. i, tags = { 'a', 'b', i } } end
                for i = 400, 400000, 400 do kept[#kept + 1] = all[i] end
                return #kept",
        );
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master ends its workers, by force where they do not end by themselves, and then itself.
        self.child.terminate();
    }
}

/// A port that nobody listens on now.
fn free_port() -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    listener.local_addr().expect("a free port").port()
}

fn config(plan: &Plan, dir: &Path, port: Option<u16>) -> String {
    let path = dir.display();
    let processes = match plan.workers {
        0 => "master_process off;".to_owned(),
        // Workers of root's nginx would be nobody, who may not enter this directory.
        n if crate::child::is_root() => format!("user root; worker_processes {n};"),
        n => format!("worker_processes {n};"),
    };
    let Plan { http, server, init_worker, .. } = plan;
    let tcp = port.map(|port| format!("listen 127.0.0.1:{port};")).unwrap_or_default();
    format!(
        "daemon off; {processes} pid {path}/pid; error_log {path}/error.log warn;
        load_module {MODULES}/ndk_http_module.so; load_module {MODULES}/ngx_http_lua_module.so;
        events {{}}
        http {{
            access_log off;
            client_body_temp_path {path}/1; proxy_temp_path {path}/2; fastcgi_temp_path {path}/3;
            uwsgi_temp_path {path}/4; scgi_temp_path {path}/5;
            {http}
            init_worker_by_lua_block {{
                {init_worker}
                io.stdout:write('@ready ', ngx.worker.pid(), '\\n') io.stdout:flush()
            }}
            server {{
                listen unix:{path}/socket; {tcp}
                {server}
            }}
        }}"
    )
}
