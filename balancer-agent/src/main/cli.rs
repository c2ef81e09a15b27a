//! What can be said to the `balancer` command.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::from;

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  not done: a mistake in the file, a refusal, or a failure; standard error says which
  2  the command line is wrong
  3  no agent answers on the socket";

#[derive(Parser)]
#[command(name = "balancer", version, about = "Balances connections and requests over servers", after_help = EXIT_CODES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
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
pub enum SessionsCommand {
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
pub struct ListSessions {
    /// As JSON
    #[arg(long)]
    pub json: bool,
    /// Of this group
    #[arg(long)]
    pub group: Option<String>,
    /// Bound to the backend with this route
    #[arg(long)]
    pub route: Option<String>,
    /// How many to list
    #[arg(long, default_value_t = 100)]
    pub limit: u32,
    /// The copies that this node holds, in place of the cluster's sessions
    #[arg(long)]
    pub held: bool,
    #[command(flatten)]
    pub agent: Agent,
}

#[derive(Args)]
pub struct NameSession {
    /// An id from the list or its beginning, a cookie's value, or a client's address
    pub id: String,
    /// Of this group
    #[arg(long)]
    pub group: Option<String>,
    #[command(flatten)]
    pub agent: Agent,
}

#[derive(Args)]
pub struct Agent {
    /// The agent's admin socket
    #[arg(
        long,
        env = "BALANCER_SOCKET",
        default_value = "/run/balancer.sock",
        value_name = "PATH"
    )]
    pub socket: PathBuf,
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
