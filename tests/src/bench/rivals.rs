//! The proxies that are measured side by side: the balancer, and HAProxy and nginx from
//! the system's packages. All forward to the same responder, on as many threads as there
//! are cores, tell it the same about the client, and log nothing.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tempfile::TempDir;

use crate::agent::Agent;
use crate::http::proc;
use crate::http::web;
use crate::netns::Netns;
use crate::process::{BOUND, Process, came_true};

/// Bytes of the responder's body.
pub const BODY: usize = 1024;

const fn at(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

const RESPONDER: SocketAddr = at(9000);

/// A proxy under measurement.
pub struct Rival {
    /// Its name.
    pub name: &'static str,
    /// Where it speaks HTTP/1.1.
    pub http1: SocketAddr,
    /// Where it speaks HTTP/2 with prior knowledge.
    pub http2: SocketAddr,
    running: Running,
}

enum Running {
    Agent(Box<Agent>),
    Process(Process),
}

impl Rival {
    /// Its processes.
    pub fn pids(&self) -> Vec<u32> {
        let first = match &self.running {
            Running::Agent(agent) => agent.id(),
            Running::Process(process) => process.id(),
        };
        proc::family(first)
    }

    /// Its version, where it is not of this repository.
    pub fn version(&self) -> Option<String> {
        let (program, option) = match self.name {
            "HAProxy" => ("haproxy", "-v"),
            "nginx" => ("nginx", "-v"),
            _ => return None,
        };
        let output = std::process::Command::new(program)
            .arg(option)
            .output()
            .ok()?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        let words = text.split([' ', '/']).map(str::to_owned);
        words
            .into_iter()
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()))
    }
}

/// All proxies and their responder. Dropped in this order.
pub struct Field {
    /// The balancer, HAProxy, nginx.
    pub rivals: Vec<Rival>,
    _responder: Process,
    /// Where all of it is.
    pub ns: Netns,
    _dir: TempDir,
}

/// Threads of each proxy.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

impl Field {
    /// Starts everything.
    ///
    /// # Errors
    /// When a program is missing or does not serve.
    pub fn start() -> Result<Self> {
        for program in ["haproxy", "nginx", "wrk", "h2load"] {
            ensure!(
                web::has(program),
                "{program} is missing: `cargo xtask setup` installs it"
            );
        }
        let (ns, dir) = (Netns::new(), web::scene_dir());
        ns.sysctl("net.ipv4.ip_local_port_range", "10000 65535");
        ns.sysctl("net.ipv4.tcp_tw_reuse", "1");
        ns.sysctl("net.core.somaxconn", "8192");
        let responder = nginx(&ns, dir.path(), "responder", &responder_config());
        let rivals = vec![
            Rival {
                name: "balancer",
                http1: at(8001),
                http2: at(8001),
                running: Running::Agent(Box::new(balancer(&ns))),
            },
            Rival {
                name: "HAProxy",
                http1: at(8011),
                http2: at(8012),
                running: Running::Process(haproxy(&ns, dir.path())),
            },
            Rival {
                name: "nginx",
                http1: at(8021),
                http2: at(8022),
                running: Running::Process(nginx(&ns, dir.path(), "proxy", &nginx_config())),
            },
        ];
        let all = rivals.iter().flat_map(|rival| [rival.http1, rival.http2]);
        for address in all.chain([RESPONDER]) {
            let open = || {
                ns.enter(|| TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_ok())
            };
            if !came_true(BOUND, open) {
                bail!("nobody listens on {address}");
            }
        }
        Ok(Self {
            rivals,
            _responder: responder,
            ns,
            _dir: dir,
        })
    }
}

fn balancer(ns: &Netns) -> Agent {
    let config = format!(
        "[http]\nthreads = {}\nmax_connections = 100000\n\n\
         [[frontend]]\nname = \"bench\"\nmode = \"http\"\naddress = \"{}\"\npool = \"app\"\n\
         [frontend.timeouts]\nkeep_alive = \"10m\"\n\
         [frontend.limits]\nconnections_per_source = 65535\n\n\
         [[pool]]\nname = \"app\"\n[pool.check]\ntype = \"none\"\n\
         [[pool.backend]]\nname = \"s0\"\naddress = \"{RESPONDER}\"\n",
        cores(),
        at(8001),
    );
    let mut agent = Agent::prepare_plain(ns, &config);
    agent.run();
    agent
}

// `no strict-limits`: it would not start where fewer files may be open than it could need
// at most; the benchmark needs fewer.
fn haproxy(ns: &Netns, dir: &Path) -> Process {
    let config = format!(
        "global\n  nbthread {}\n  maxconn 30000\n  no strict-limits\n\
         defaults\n  mode http\n  timeout client 10m\n  timeout server 1m\n  timeout connect 3s\n\
         \x20 timeout http-keep-alive 10m\n  option http-keep-alive\n  http-reuse always\n\
         frontend bench\n  bind {}\n  bind {} proto h2\n  option forwardfor\n\
         \x20 http-request set-header X-Forwarded-Proto http\n\
         \x20 http-request set-header X-Forwarded-Host %[req.hdr(host)]\n\
         \x20 http-request set-header X-Forwarded-Port %[dst_port]\n\
         \x20 default_backend app\n\
         backend app\n  server s0 {RESPONDER} maxconn 30000\n",
        cores(),
        at(8011),
        at(8012),
    );
    let path = dir.join("haproxy.cfg");
    fs::write(&path, config).expect("write");
    let mut command = ns.command("haproxy");
    command.arg("-db").arg("-f").arg(&path);
    Process::spawn("HAProxy", command, &dir.join("haproxy.log"))
}

fn nginx(ns: &Netns, dir: &Path, name: &str, config: &str) -> Process {
    let place = dir.join(name);
    fs::create_dir_all(place.join("temp")).expect("a directory");
    let path = place.join("nginx.conf");
    let config = config.replace("PLACE", &place.display().to_string());
    fs::write(&path, config).expect("write");
    let mut command = ns.command("nginx");
    command
        .arg("-p")
        .arg(&place)
        .arg("-c")
        .arg(&path)
        .args(["-e", "stderr"]);
    Process::spawn(name, command, &place.join("log"))
}

const NGINX: &str = "daemon off;\npid PLACE/pid;\nerror_log stderr crit;\nuser root;\n\
    worker_rlimit_nofile 65535;\nevents { worker_connections 32768; }\n";

fn paths() -> String {
    ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path PLACE/temp/{name};\n"))
        .concat()
}

fn responder_config() -> String {
    format!(
        "{NGINX}worker_processes {};\nhttp {{\n{}access_log off;\nkeepalive_requests 100000000;\n\
         keepalive_timeout 10m;\nserver {{ listen {RESPONDER} backlog=8192; \
         location / {{ default_type text/plain; return 200 \"{}\"; }} }} }}\n",
        cores(),
        paths(),
        "x".repeat(BODY),
    )
}

fn nginx_config() -> String {
    format!(
        "{NGINX}worker_processes {};\nhttp {{\n{}access_log off;\nkeepalive_requests 100000000;\n\
         keepalive_timeout 10m;\nupstream app {{ server {RESPONDER}; keepalive 128; \
         keepalive_requests 100000000; }}\n\
         server {{ listen {} backlog=8192; listen {} http2 backlog=8192; \
         http2_max_concurrent_streams 128;\n\
         location / {{ proxy_pass http://app; proxy_http_version 1.1; \
         proxy_set_header Connection \"\"; proxy_set_header Host $host; \
         proxy_set_header X-Forwarded-For $remote_addr; \
         proxy_set_header X-Forwarded-Proto $scheme; \
         proxy_set_header X-Forwarded-Host $host; \
         proxy_set_header X-Forwarded-Port $server_port; }} }} }}\n",
        cores(),
        paths(),
        at(8021),
        at(8022),
    )
}
