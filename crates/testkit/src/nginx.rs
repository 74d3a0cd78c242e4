//! nginx with the Lua module: the program that this project began with.
//!
//! Invariants: it is ready when there is an [`Nginx`]; it ends with its test, whatever becomes of that. Failures
//! panic, as tests do.
#![allow(clippy::expect_used)]

use crate::child::Child;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

/// nginx with the Lua module, one process, on a socket in a directory of its own. Ends when dropped.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    dir: tempfile::TempDir,
}

impl Nginx {
    /// Starts it, and waits until it takes requests; nothing, visibly, where the module is not installed. Debian's
    /// module wants OpenResty's branch of LuaJIT: it calls lua_setexdata.
    pub fn start() -> Option<Nginx> {
        let modules = Path::new("/usr/lib/nginx/modules");
        if !modules.join("ngx_http_lua_module.so").exists() {
            println!("skipped: nginx: libnginx-mod-http-lua is not installed");
            return None;
        }
        let dir = tempfile::tempdir().expect("nginx");
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
        std::fs::write(dir.path().join("nginx.conf"), config).expect("nginx");
        let mut command = Command::new("setpriv");
        // It ends with this test: it does not read the standard input whose end would tell it.
        command
            .args(["--pdeathsig", "KILL", "nginx", "-e", "stderr", "-c"])
            .arg(dir.path().join("nginx.conf"));
        command.arg("-p").arg(dir.path());
        Some(Nginx { child: Child::spawn(&mut command), dir })
    }

    /// Runs `code` as a request and returns what it returns.
    pub fn run(&self, code: &str) -> String {
        let mut stream = UnixStream::connect(self.dir.path().join("socket")).expect("nginx");
        let (length, head) = (code.len(), "POST / HTTP/1.0\r\nContent-Length:");
        write!(stream, "{head} {length}\r\n\r\n{code}").expect("nginx");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("nginx");
        let (head, body) = answer.split_once("\r\n\r\n").expect("nginx");
        assert!(head.contains(" 200 "), "{answer}");
        body.trim().to_owned()
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.pid()
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
