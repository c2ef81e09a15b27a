//! AJP13 beside Apache httpd with mod_jk, both before the same Tomcat and a page of 1 KiB:
//! requests per second, processor time per request, latency. Every figure of a round is
//! taken of both in turn, after Tomcat has been warmed up through both.
//!
//! Processor time is the sum of all processes of a proxy, as in [`http`](super::http). Client,
//! proxy and Tomcat share the machine's cores: what a proxy leaves to Tomcat shows in its
//! requests per second.
//!
//! Tomcat is asked without a proxy as well, by its HTTP connector: what it takes itself is in
//! the latency of both, and no proxy can be faster.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::figure::{Figure, Report, Target};
use super::http::{CONNECTIONS, Run, Series, wrk};
use super::idle;
use super::rivals::{BODY, cores};
use crate::agent::Agent;
use crate::http::proc;
use crate::http::tomcat::{SECRET, Setup, Tomcat};
use crate::http::web;
use crate::netns::Netns;
use crate::process::{BOUND, Process, came_true};

const fn at(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

const BALANCER: SocketAddr = at(8001);
const APACHE: SocketAddr = at(8011);
const TOMCAT: SocketAddr = at(8021);
const PAGE: &str = "/page";

/// Where Debian's packages have httpd's modules.
const MODULES: &str = "/usr/lib/apache2/modules";

/// How requests come, and whether each has a connection of its own.
const WAYS: [(&str, bool); 2] = [("keep-alive", false), ("a connection per request", true)];

/// The two, and what they stand before.
const NAMES: [&str; 3] = ["balancer", "mod_jk", "Tomcat itself"];

/// What of Tomcat is not shown.
const CPU: &str = "CPU per 100,000 requests";

/// Dropped in this order: the proxies before their Tomcat.
struct Field {
    agent: Agent,
    apache: Apache,
    _tomcat: Tomcat,
    ns: Netns,
    _dir: TempDir,
}

/// httpd. Its children would outlive it: it is asked to end, and ends them.
struct Apache(Process);

impl Drop for Apache {
    fn drop(&mut self) {
        if self.0.running() {
            self.0.signal(Signal::SIGTERM);
            came_true(BOUND, || !self.0.running());
        }
    }
}

impl Field {
    fn start() -> Result<Self> {
        for program in ["apache2", "wrk"] {
            let there = web::has(program) || Path::new("/usr/sbin").join(program).exists();
            ensure!(
                there,
                "{program} is missing: `cargo xtask setup` installs it"
            );
        }
        ensure!(
            Path::new(MODULES).join("mod_jk.so").exists(),
            "{MODULES}/mod_jk.so is missing: `cargo xtask setup` installs it"
        );
        let (ns, dir) = (Netns::new(), web::scene_dir());
        ns.sysctl("net.ipv4.ip_local_port_range", "10000 65535");
        ns.sysctl("net.ipv4.tcp_tw_reuse", "1");
        ns.sysctl("net.core.somaxconn", "8192");
        let setup = Setup {
            long_run: true,
            http: TOMCAT.port(),
            ..Setup::default()
        };
        let tomcat = Tomcat::start(&ns, setup);
        let field = Self {
            agent: balancer(&ns, setup.ajp),
            apache: Apache(apache(&ns, dir.path(), setup.ajp)?),
            _tomcat: tomcat,
            ns,
            _dir: dir,
        };
        for address in [BALANCER, APACHE] {
            let open = || {
                let connect = || TcpStream::connect_timeout(&address, Duration::from_secs(1));
                field.ns.enter(|| connect().is_ok())
            };
            if !came_true(BOUND, open) {
                bail!("nobody listens on {address}: {}", field.apache.0.log());
            }
        }
        Ok(field)
    }

    /// Of a proxy; Tomcat's time is the same before every one, and not what is measured.
    fn pids(&self, number: usize) -> Vec<u32> {
        match number {
            0 => proc::family(self.agent.id()),
            1 => proc::family(self.apache.0.id()),
            _ => Vec::new(),
        }
    }

    /// One run, and what it cost in seconds of processor time.
    fn run(&self, number: usize, window: Duration, each: bool) -> Result<(Run, f64)> {
        let address = [BALANCER, APACHE, TOMCAT][number];
        let pids = self.pids(number);
        let before = proc::run_seconds(&pids);
        let run = wrk(&self.ns, address, PAGE, window, each).context(NAMES[number])?;
        // httpd may have started a process meanwhile, but what one that has ended has used
        // would be missing.
        let after = self.pids(number);
        ensure!(
            pids.iter().all(|pid| after.contains(pid)),
            "{}: a process of it has ended",
            NAMES[number]
        );
        let cpu = proc::run_seconds(&after) - before;
        ensure!(run.requests > 0.0, "{}: not one request", NAMES[number]);
        Ok((run, cpu))
    }
}

/// Measures and reports.
///
/// # Errors
/// When a program is missing, or a request failed.
pub fn run(report: &mut Report, quick: bool) -> Result<()> {
    let (rounds, window, warm) = match quick {
        true => (2, Duration::from_millis(1_200), Duration::from_secs(4)),
        false => (6, Duration::from_millis(2_500), Duration::from_secs(16)),
    };
    idle::raise_files(4_000)?;
    let field = Field::start()?;
    let version = std::process::Command::new("apache2ctl").arg("-v").output();
    let version = version.map_or_else(
        |_| String::new(),
        |said| String::from_utf8_lossy(&said.stdout).into_owned(),
    );
    println!("{}", version.lines().next().unwrap_or("httpd"));

    // Tomcat's compiler wants to have seen every way for some seconds.
    let begin = Instant::now();
    let mut last = 0.0;
    while begin.elapsed() < warm {
        for (_, each) in WAYS {
            for number in 0..NAMES.len() {
                let (run, _) = field.run(number, Duration::from_secs(1), each)?;
                last = run.requests / run.seconds;
            }
        }
    }
    println!(
        "warmed up in {:.0?}; {last:.0} requests/s at the end",
        begin.elapsed()
    );

    let mut all: BTreeMap<(bool, usize), Series> = BTreeMap::new();
    for round in 0..rounds {
        for (name, each) in WAYS {
            for turn in 0..NAMES.len() {
                // Nobody always follows the other.
                let number = (turn + round) % NAMES.len();
                let (run, cpu) = field.run(number, window, each).context(name)?;
                all.entry((each, number)).or_default().add(&run, cpu);
            }
        }
    }
    for (name, each) in WAYS {
        let of = |number| all.get(&(each, number)).context("no round");
        section(report, name, [of(0)?, of(1)?, of(2)?], rounds)?;
    }
    Ok(())
}

fn section(report: &mut Report, name: &str, series: [&Series; 3], rounds: usize) -> Result<()> {
    let third = Some(Target::AtMost(0.333));
    let mut figures = Vec::new();
    for (what, unit, of, target) in [
        (
            "requests/s",
            "req/s",
            (|s| &s.rate) as fn(&Series) -> &super::clock::Samples,
            None,
        ),
        (CPU, "s", |s| &s.cpu, third),
        ("latency, half", "ms", |s| &s.p50, None),
        ("latency, 99 of 100", "ms", |s| &s.p99, third),
    ] {
        let figure = |number: usize| {
            let middle = of(series[number]).median()?;
            let name = format!("{}: {what}", NAMES[number]);
            anyhow::Ok(Figure::new(name, middle, middle, unit))
        };
        let theirs = figure(1)?;
        let ours = figure(0)?.paired(&theirs, of(series[0]), of(series[1]))?;
        figures.push(match target {
            Some(target) => ours.target(target),
            None => ours,
        });
        if what != CPU {
            // How far the aim is within anybody's reach.
            figures.push(figure(2)?.paired(&theirs, of(series[2]), of(series[1]))?);
        }
        figures.push(theirs);
    }
    let title =
        format!("AJP13, {name}: {BODY} bytes, {CONNECTIONS} connections, median of {rounds}");
    report.section(&title, figures);
    Ok(())
}

// Both know their Tomcat by AJP13 alone, ask a fresh connection by CPING and nothing more,
// keep as many connections as they like, check nothing and log nothing.
fn balancer(ns: &Netns, tomcat: u16) -> Agent {
    let secret = SECRET.replace('"', "\\\"");
    let config = format!(
        "[http]\nthreads = {}\nmax_connections = 100000\n\n\
         [[frontend]]\nname = \"bench\"\nmode = \"http\"\naddress = \"{BALANCER}\"\npool = \"app\"\n\
         [frontend.timeouts]\nkeep_alive = \"10m\"\n\
         [frontend.limits]\nconnections_per_source = 65535\n\n\
         [[pool]]\nname = \"app\"\nprotocol = \"ajp\"\nsecret = \"{secret}\"\n\
         [pool.check]\ntype = \"none\"\n[pool.ping]\nreuse = false\n\
         [[pool.backend]]\nname = \"s0\"\naddress = \"{}\"\n",
        cores(),
        at(tomcat),
    );
    let mut agent = Agent::prepare_plain(ns, &config);
    agent.run();
    agent
}

/// Debian's event MPM with its threads per process. Processes enough from the start for
/// every connection of the benchmark, and none is ended while it is idle. The pool of
/// connections is mod_jk's own choice, as its manual advises: one for each thread.
fn apache(ns: &Netns, dir: &Path, tomcat: u16) -> Result<Process> {
    let place: PathBuf = dir.join("apache");
    fs::create_dir_all(place.join("empty"))?;
    let workers = format!(
        "worker.list=app\nworker.app.type=ajp13\nworker.app.host=127.0.0.1\n\
         worker.app.port={tomcat}\nworker.app.secret={SECRET}\nworker.app.ping_mode=C\n\
         worker.app.socket_keepalive=true\n"
    );
    fs::write(place.join("workers.properties"), workers)?;
    let config = format!(
        "ServerRoot \"PLACE\"\nServerName bench\nPidFile PLACE/pid\nDefaultRuntimeDir PLACE\n\
         ErrorLog PLACE/error.log\nLogLevel warn\nUser www-data\nGroup www-data\n\
         LoadModule mpm_event_module {MODULES}/mod_mpm_event.so\n\
         LoadModule authz_core_module {MODULES}/mod_authz_core.so\n\
         LoadModule jk_module {MODULES}/mod_jk.so\n\
         StartServers 4\nThreadsPerChild 25\nMinSpareThreads 25\nMaxSpareThreads 150\n\
         MaxRequestWorkers 150\nMaxConnectionsPerChild 0\n\
         KeepAlive On\nKeepAliveTimeout 60\nMaxKeepAliveRequests 0\nListenBacklog 8192\n\
         Listen {APACHE}\nDocumentRoot PLACE/empty\n\
         JkWorkersFile PLACE/workers.properties\nJkShmFile PLACE/jk.shm\n\
         JkLogFile PLACE/jk.log\nJkLogLevel warn\nJkMount /* app\n"
    )
    .replace("PLACE", &place.display().to_string());
    let path = place.join("httpd.conf");
    fs::write(&path, config)?;
    let mut command = ns.command("apache2");
    command
        .arg("-DFOREGROUND")
        .arg("-f")
        .arg(&path)
        // Debian's variables for its own configuration are not for this one.
        .env_remove("APACHE_CONFDIR");
    Ok(Process::spawn("httpd", command, &place.join("log")))
}
