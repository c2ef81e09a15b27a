//! `balancer import`: which files, and what is said where.

use std::collections::HashMap;
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;

use balancer_agent::import::{self, Imported, Options};
use clap::{Args, Subcommand};

/// Whose configuration.
#[derive(Subcommand)]
pub enum Foreign {
    /// HAProxy's: haproxy.cfg
    Haproxy {
        /// The file
        file: PathBuf,
        #[command(flatten)]
        more: More,
    },
    /// mod_jk's: workers.properties, with what httpd mounts
    Workers {
        /// The file
        file: PathBuf,
        /// httpd's configuration, from which virtual hosts, mounts and files are taken
        #[arg(long, value_name = "FILE")]
        httpd: Option<PathBuf>,
        /// An uriworkermap.properties
        #[arg(long, value_name = "FILE")]
        map: Option<PathBuf>,
        #[command(flatten)]
        more: More,
    },
    /// nginx's: nginx.conf
    Nginx {
        /// The file
        file: PathBuf,
        #[command(flatten)]
        more: More,
    },
}

/// What the files do not say.
#[derive(Args)]
pub struct More {
    /// Look up names of servers, and write down the addresses that they have now
    #[arg(long)]
    resolve: bool,
    /// An interface for frontends that are steered in the kernel; may be given several times
    #[arg(long = "interface", value_name = "NAME")]
    interfaces: Vec<String>,
    /// The address that clients connect to, where a frontend that is steered in the kernel
    /// had all of the host's
    #[arg(long, value_name = "IP")]
    address: Option<IpAddr>,
    /// Where the key for cookies of the balancer's own will be
    #[arg(long, value_name = "PATH", default_value = "/etc/balancer/cookie.key")]
    cookie_key: PathBuf,
}

/// Prints what becomes of the files.
pub fn import(from: Foreign) -> anyhow::Result<()> {
    let imported = match from {
        Foreign::Haproxy { file, more } => import::haproxy(&file, &options(more))?,
        Foreign::Workers {
            file,
            httpd,
            map,
            more,
        } => import::workers(&file, map.as_deref(), httpd.as_deref(), &options(more))?,
        Foreign::Nginx { file, more } => import::nginx(&file, &options(more))?,
    };
    let Imported {
        toml,
        left_over,
        notes,
    } = imported;
    let mut err = std::io::stderr().lock();
    // A reader that has gone has no use for messages either.
    for entry in &left_over {
        let _ = writeln!(err, "{entry}");
    }
    for entry in &notes {
        let _ = writeln!(err, "note: {entry}");
    }
    super::say(&toml)
}

fn options(more: More) -> Options {
    // What is no text can't stand in a configuration.
    let variables = std::env::vars_os();
    let environment: HashMap<String, String> = variables
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    Options {
        environment,
        resolve: more.resolve,
        interfaces: more.interfaces,
        cookie_key: more.cookie_key,
        address: more.address,
    }
}
