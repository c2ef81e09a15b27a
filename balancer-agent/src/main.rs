//! The `balancer` command: what can be said to it, and its exit codes.

#[path = "main/from.rs"]
mod from;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use balancer_agent::admin::client::{AskError, ask};
use balancer_agent::admin::protocol::{Answer, BackendStatus, FlowFilter, Request};
use balancer_agent::admin::render;
use balancer_agent::admin::sessions::{SessionFilter, SessionName};
use balancer_agent::app;
use balancer_agent::config::{self, ConfigError};
use balancer_agent::model::Activation;
use balancer_agent::model::http::StatsFormat;
use balancer_agent::proxy::stats::Reopened;
use clap::{Args, Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Quicker than the system's for the small and short-lived, and it gives pages back that a
/// burst of connections has left.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  not done: a mistake in the file, a refusal, or a failure; standard error says which
  2  the command line is wrong
  3  no agent answers on the socket";

#[derive(Parser)]
#[command(name = "balancer", version, about = "Balances connections and requests over servers", after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Check a configuration file and the files that it names; changes nothing
    #[command(after_help = EXIT_CODES)]
    Check {
        /// The file
        file: PathBuf,
    },
    /// Run the agent
    #[command(after_help = EXIT_CODES)]
    Run {
        /// The configuration file
        #[arg(long, short)]
        config: PathBuf,
        /// Print what would be changed in the kernel's tables, and end
        #[arg(long)]
        dry_run: bool,
        /// What to log, such as `info` or `debug,kernel=trace`; RUST_LOG is used without
        #[arg(long, value_name = "FILTER")]
        log: Option<String>,
    },
    /// Make a configuration of another balancer's: TOML on standard output, and what is not in
    /// it on standard error
    #[command(after_help = EXIT_CODES)]
    Import {
        #[command(subcommand)]
        from: from::Foreign,
    },
    /// Show the node, its frontends and its backends
    #[command(after_help = EXIT_CODES)]
    Status {
        /// As JSON
        #[arg(long, conflicts_with_all = ["csv", "jk"])]
        json: bool,
        /// As HAProxy's CSV
        #[arg(long, conflicts_with = "jk")]
        csv: bool,
        /// As the list of mod_jk's status worker
        #[arg(long)]
        jk: bool,
        /// Form of the list: `prop`, `xml` or `txt`
        #[arg(long, requires = "jk", default_value = "txt", value_parser = ["prop", "xml", "txt"])]
        mime: String,
        #[command(flatten)]
        agent: Agent,
    },
    /// Give a backend no new flows and sessions; existing ones go on
    #[command(after_help = EXIT_CODES)]
    Drain {
        /// POOL/BACKEND, or BACKEND when only one pool has it
        backend: String,
        /// Wait until no flow and no request is left
        #[arg(long)]
        wait: bool,
        /// Longest time to wait, such as `30s` or `10m`
        #[arg(long, value_name = "TIME", value_parser = time, requires = "wait")]
        timeout: Option<Duration>,
        /// Wait until no session is left either, and stop the backend after this long: what
        /// is left moves to others with its next request. Of pools with a group
        #[arg(long, value_name = "TIME", value_parser = time, conflicts_with_all = ["wait", "timeout"])]
        deadline: Option<Duration>,
        #[command(flatten)]
        agent: Agent,
    },
    /// Give a backend new flows and sessions again
    #[command(after_help = EXIT_CODES)]
    Activate {
        /// POOL/BACKEND, or BACKEND when only one pool has it
        backend: String,
        #[command(flatten)]
        agent: Agent,
    },
    /// Give a backend nothing any more: existing flows are cut, sessions go elsewhere
    #[command(after_help = EXIT_CODES)]
    Stop {
        /// POOL/BACKEND, or BACKEND when only one pool has it
        backend: String,
        #[command(flatten)]
        agent: Agent,
    },
    /// List flows
    #[command(after_help = EXIT_CODES)]
    Flows {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Only how many there are
        #[arg(long)]
        count: bool,
        /// Of this backend: POOL/BACKEND, or BACKEND when only one pool has it
        #[arg(long)]
        backend: Option<String>,
        /// Of this frontend
        #[arg(long)]
        frontend: Option<String>,
        /// Of this client
        #[arg(long, value_name = "IP")]
        client: Option<std::net::IpAddr>,
        /// How many to list
        #[arg(long, default_value_t = 100)]
        limit: u32,
        #[command(flatten)]
        agent: Agent,
    },
    /// List sessions that the nodes of the cluster keep together; count, show or expire them
    #[command(after_help = EXIT_CODES)]
    Sessions {
        #[command(subcommand)]
        what: Option<SessionsCommand>,
        #[command(flatten)]
        list: ListSessions,
    },
    /// Have the agent read its configuration file again; ends when the kernel has it
    #[command(after_help = EXIT_CODES)]
    Reload {
        #[command(flatten)]
        agent: Agent,
    },
    /// Have the agent open its access logs again, after they were renamed; so does SIGUSR1
    #[command(after_help = EXIT_CODES)]
    ReopenLogs {
        #[command(flatten)]
        agent: Agent,
    },
    /// Take the program out of the kernel and forget all flows; no agent may run
    #[command(after_help = EXIT_CODES)]
    Unload {
        /// Where it is pinned, when the configuration names a place
        #[arg(long)]
        pin_dir: Option<PathBuf>,
        /// The configuration that names the place
        #[arg(long, short, conflicts_with = "pin_dir")]
        config: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum SessionsCommand {
    /// List sessions of the whole cluster
    List(ListSessions),
    /// Count them over the whole cluster, by group and route
    Count {
        /// As JSON
        #[arg(long)]
        json: bool,
        /// Of this group
        #[arg(long)]
        group: Option<String>,
        #[command(flatten)]
        agent: Agent,
    },
    /// Show one, wherever it is held, and which nodes hold it
    Show {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        name: NameSession,
    },
    /// End one, on all nodes
    Expire(NameSession),
}

#[derive(Args)]
struct ListSessions {
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Of this group
    #[arg(long)]
    group: Option<String>,
    /// Bound to the backend with this route
    #[arg(long)]
    route: Option<String>,
    /// How many to list
    #[arg(long, default_value_t = 100)]
    limit: u32,
    /// The copies that this node holds, in place of the cluster's sessions
    #[arg(long)]
    held: bool,
    #[command(flatten)]
    agent: Agent,
}

#[derive(Args)]
struct NameSession {
    /// An id from the list or its beginning, a cookie's value, or a client's address
    id: String,
    /// Of this group
    #[arg(long)]
    group: Option<String>,
    #[command(flatten)]
    agent: Agent,
}

#[derive(Args)]
struct Agent {
    /// The agent's admin socket
    #[arg(
        long,
        env = "BALANCER_SOCKET",
        default_value = "/run/balancer.sock",
        value_name = "PATH"
    )]
    socket: PathBuf,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A reader that has gone has no use for messages either.
            let mut err = std::io::stderr().lock();
            if let Some(error) = error.downcast_ref::<ConfigError>() {
                let report = error.report(err.is_terminal());
                let _ = writeln!(err, "{}", report.trim_end());
            } else {
                let message = render::headed("balancer", &with_causes(&error));
                let _ = writeln!(err, "{message}");
            }
            match error.downcast_ref::<AskError>() {
                Some(AskError::NoAgent { .. }) => ExitCode::from(3),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Check { file } => check(&file),
        Command::Import { from } => from::import(from),
        Command::Run {
            config,
            dry_run,
            log,
        } => {
            start_log(log.as_deref())?;
            match dry_run {
                true => say(&app::dry_run(&config)?),
                false => app::run(&config),
            }
        }
        Command::Status {
            csv: true, agent, ..
        } => view(&agent.socket, StatsFormat::HaproxyCsv, String::new()),
        Command::Status {
            jk: true,
            mime,
            agent,
            ..
        } => view(&agent.socket, StatsFormat::JkStatus, format!("mime={mime}")),
        Command::Status { json, agent, .. } => {
            let Answer::Status(status) = ask(&agent.socket, Request::Status)? else {
                return Err(unexpected());
            };
            match json {
                true => say_json(&status),
                false => say(&render::status(&status)),
            }
        }
        Command::Drain {
            backend,
            wait,
            timeout,
            deadline,
            agent,
        } => {
            let name = set(&agent.socket, backend, Activation::Drain)?;
            match (wait, deadline) {
                (_, Some(deadline)) => end_sessions(&agent.socket, &name, deadline),
                (true, None) => wait_drained(&agent.socket, &name, timeout),
                (false, None) => Ok(()),
            }
        }
        Command::Activate { backend, agent } => {
            set(&agent.socket, backend, Activation::Active).map(drop)
        }
        Command::Stop { backend, agent } => {
            set(&agent.socket, backend, Activation::Stopped).map(drop)
        }
        Command::Flows {
            json,
            count,
            backend,
            frontend,
            client,
            limit,
            agent,
        } => {
            let filter = FlowFilter {
                backend,
                frontend,
                client,
                limit: if count { 0 } else { limit },
            };
            let Answer::Flows(list) = ask(&agent.socket, Request::Flows(filter))? else {
                return Err(unexpected());
            };
            match (json, count) {
                (true, _) => say_json(&list),
                (false, true) => say(&format!("{}\n", list.total)),
                (false, false) => say(&render::flows(&list)),
            }
        }
        Command::Sessions { what, list } => sessions(what.unwrap_or(SessionsCommand::List(list))),
        Command::Reload { agent } => {
            let Answer::Reloaded { warnings } = ask(&agent.socket, Request::Reload)? else {
                return Err(unexpected());
            };
            if !warnings.is_empty() {
                eprintln!("{}", warnings.trim_end());
            }
            say("reloaded\n")
        }
        Command::ReopenLogs { agent } => {
            let answer = ask(&agent.socket, Request::ReopenLogs)?;
            let Answer::LogsReopened { files } = answer else {
                return Err(unexpected());
            };
            reopened(&files)
        }
        Command::Unload { pin_dir, config } => {
            start_log(Some("warn"))?;
            let pin_dir = match config {
                Some(file) => config::load(&file)?.xdp.pin_dir,
                None => pin_dir,
            };
            say(&format!("{}\n", app::unload(pin_dir.as_deref())?))
        }
    }
}

fn sessions(command: SessionsCommand) -> anyhow::Result<()> {
    match command {
        SessionsCommand::List(list) => {
            let filter = SessionFilter {
                group: list.group,
                route: list.route,
                limit: list.limit,
                held: list.held,
            };
            let answer = ask(&list.agent.socket, Request::Sessions(filter))?;
            let Answer::Sessions(sessions) = answer else {
                return Err(unexpected());
            };
            match list.json {
                true => say_json(&sessions),
                false => say(&render::sessions(&sessions)),
            }
        }
        SessionsCommand::Count { json, group, agent } => {
            let answer = ask(&agent.socket, Request::SessionCounts { group })?;
            let Answer::SessionCounts(counts) = answer else {
                return Err(unexpected());
            };
            match json {
                true => say_json(&counts),
                false => say(&render::session_counts(&counts)),
            }
        }
        SessionsCommand::Show { json, name } => {
            let NameSession { id, group, agent } = name;
            let request = Request::Session(SessionName { id, group });
            let Answer::Session(session) = ask(&agent.socket, request)? else {
                return Err(unexpected());
            };
            match json {
                true => say_json(&session),
                false => say(&render::session(&session)),
            }
        }
        SessionsCommand::Expire(NameSession { id, group, agent }) => {
            let request = Request::ExpireSession(SessionName { id, group });
            let Answer::SessionEnded { group, id } = ask(&agent.socket, request)? else {
                return Err(unexpected());
            };
            say(&format!("{group}: {id} ended\n"))
        }
    }
}

/// Prints the statistics as another balancer's.
fn view(socket: &Path, format: StatsFormat, query: String) -> anyhow::Result<()> {
    let Answer::View(view) = ask(socket, Request::View { format, query })? else {
        return Err(unexpected());
    };
    say(&view.text)
}

/// Says which access logs were opened again, and fails when one was not.
fn reopened(files: &[Reopened]) -> anyhow::Result<()> {
    let mut failed = Vec::new();
    for Reopened { file, error } in files {
        match error {
            None => say(&format!("{file}: opened again\n"))?,
            Some(error) => failed.push(format!("{file}: {error}")),
        }
    }
    if !failed.is_empty() {
        anyhow::bail!(
            "not opened again, the old file is written on: {}",
            failed.join("; ")
        );
    }
    match files.is_empty() {
        true => say("no frontend has an access log\n"),
        false => Ok(()),
    }
}

/// An error and its causes; those that it already quotes are left out.
fn with_causes(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn check(file: &Path) -> anyhow::Result<()> {
    let warnings = app::check(file)?;
    if !warnings.is_empty() {
        let report = warnings.report(std::io::stderr().is_terminal());
        eprintln!("{}", report.trim_end());
    }
    say("configuration is valid\n")
}

/// Sets a backend's activation and says what it means; its full name.
fn set(socket: &Path, backend: String, activation: Activation) -> anyhow::Result<String> {
    let asked = |request| match ask(socket, request)? {
        Answer::Backend { pool, backend } => Ok((pool, backend)),
        _ => Err(unexpected()),
    };
    // Flows that are cut go with their next packet: they are counted before.
    let before = match activation {
        Activation::Stopped => Some(asked(Request::Backend {
            backend: backend.clone(),
        })?),
        _ => None,
    };
    let request = Request::Activation {
        backend,
        activation,
    };
    let (pool, backend) = asked(request)?;
    let counted = before.map_or_else(|| flows(&backend), |(_, before)| flows(&before));
    let name = format!("{pool}/{}", backend.name);
    let more = match activation {
        Activation::Active => format!("health: {}", backend.health),
        Activation::Drain => format!("{counted} left{}", sessions_left(&backend)),
        Activation::Stopped => format!("{counted} cut"),
    };
    say(&format!("{name}: {activation}; {more}\n"))?;
    Ok(name)
}

/// What is known of a backend that drains.
///
/// # Errors
/// It was activated again, or can't be asked for.
fn not_activated(socket: &Path, name: &str) -> anyhow::Result<BackendStatus> {
    let request = Request::Backend {
        backend: name.to_owned(),
    };
    let Answer::Backend { backend, .. } = ask(socket, request)? else {
        return Err(unexpected());
    };
    if backend.activation == Activation::Active {
        anyhow::bail!("{name} was activated again");
    }
    Ok(*backend)
}

/// Shows the number of flows going down until none is left.
fn wait_drained(socket: &Path, name: &str, timeout: Option<Duration>) -> anyhow::Result<()> {
    const PAUSE: Duration = Duration::from_millis(250);
    let began = Instant::now();
    let mut shown = None;
    loop {
        let backend = not_activated(socket, name)?;
        let left = flows(&backend);
        if shown.as_ref() != Some(&left) {
            say(&format!("{name}: {left} left\n"))?;
            shown = Some(left);
        }
        if in_use(&backend) == 0 {
            return Ok(());
        }
        if timeout.is_some_and(|timeout| began.elapsed() >= timeout) {
            anyhow::bail!(
                "{name} still has {} after the time to wait",
                flows(&backend)
            );
        }
        std::thread::sleep(PAUSE);
    }
}

/// Shows the number of sessions going down until nothing is left, and stops the backend
/// when that takes too long.
fn end_sessions(socket: &Path, name: &str, deadline: Duration) -> anyhow::Result<()> {
    const PAUSE: Duration = Duration::from_millis(250);
    let began = Instant::now();
    let mut shown = None;
    loop {
        let backend = not_activated(socket, name)?;
        let Some(left) = backend.sessions else {
            anyhow::bail!(
                "the sessions of {name} can't be counted: its pool's `sticky` names no `group`, or \
                 the session store has too much to do; it stays drained"
            );
        };
        let now = (left, backend.sessions_unheard.clone());
        if shown.as_ref() != Some(&now) {
            say(&format!(
                "{name}: {} left{}\n",
                flows(&backend),
                sessions_left(&backend)
            ))?;
            shown = Some(now);
        }
        // Those of a node that did not answer are not in the number.
        let all = backend.sessions_unheard.is_empty();
        if all && left == 0 && in_use(&backend) == 0 {
            return Ok(());
        }
        if began.elapsed() >= deadline {
            return set(socket, name.to_owned(), Activation::Stopped).map(drop);
        }
        std::thread::sleep(PAUSE);
    }
}

/// Sessions, in words, where they are known.
fn sessions_left(backend: &BackendStatus) -> String {
    let known = match (backend.sessions, backend.last_session_ends_ms) {
        (Some(1), Some(last)) => format!(", and 1 session, which ends in {}", span(last)),
        (Some(n), Some(last)) if n > 1 => {
            format!(
                ", and {n} sessions, the last of which ends in {}",
                span(last)
            )
        }
        (Some(_), _) => ", and no session".into(),
        (None, _) => String::new(),
    };
    match render::unheard(&backend.sessions_unheard) {
        unheard if unheard.is_empty() => known,
        unheard => format!("{known} ({unheard})"),
    }
}

fn span(milliseconds: u64) -> String {
    let seconds = milliseconds.div_ceil(1_000);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds.div_ceil(60)),
        _ => format!("{}h", seconds.div_ceil(3_600)),
    }
}

/// Flows and requests, in words.
fn flows(backend: &BackendStatus) -> String {
    let text = match backend.flows + backend.half_open {
        1 => "1 flow".into(),
        n => format!("{n} flows"),
    };
    match backend.requests_in_flight {
        0 => text,
        1 => format!("{text} and 1 request"),
        n => format!("{text} and {n} requests"),
    }
}

fn in_use(backend: &BackendStatus) -> u64 {
    u64::from(backend.flows + backend.half_open) + backend.requests_in_flight
}

fn say_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    say(&format!("{}\n", serde_json::to_string_pretty(value)?))
}

/// Writes to standard output; a reader that has seen enough is no failure.
fn say(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

fn unexpected() -> anyhow::Error {
    anyhow::anyhow!("the agent answered something else than it was asked: is it another build?")
}

fn start_log(filter: Option<&str>) -> anyhow::Result<()> {
    let filter = match filter {
        Some(filter) => EnvFilter::try_new(filter)?,
        None => EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info")),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    Ok(())
}

/// A time such as `90s`, `10m` or `1500ms`.
fn time(text: &str) -> Result<Duration, String> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = match unit {
        "ms" => 1,
        "s" | "" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err("the unit is one of ms, s, m, h".into()),
    };
    let number: u64 = number
        .parse()
        .map_err(|_| "not a whole number and a unit")?;
    number
        .checked_mul(unit)
        .map(Duration::from_millis)
        .ok_or_else(|| "too long".into())
}
