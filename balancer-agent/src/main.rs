//! The `balancer` command: what is done for each of its words, and its exit codes.

#[path = "main/cli.rs"]
mod cli;
#[path = "main/drain.rs"]
mod drain;
#[path = "main/from.rs"]
mod from;

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use balancer_agent::admin::client::{AskError, ask};
use balancer_agent::admin::protocol::{Answer, FlowFilter, Request};
use balancer_agent::admin::render;
use balancer_agent::admin::sessions::{SessionFilter, SessionName};
use balancer_agent::app;
use balancer_agent::config::{self, ConfigError};
use balancer_agent::model::Activation;
use balancer_agent::model::http::StatsFormat;
use balancer_agent::proxy::stats::Reopened;
use clap::Parser as _;
use cli::{Cli, Command, NameSession, SessionsCommand};
use drain::{end_sessions, set, wait_drained};
use tracing_subscriber::EnvFilter;

/// Quicker than the system's for the small and short-lived, and it gives pages back that a
/// burst of connections has left.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
