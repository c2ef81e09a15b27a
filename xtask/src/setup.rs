//! `setup`: finds what building and testing need, says what is missing, and installs
//! it. Run again, it finds everything there and does nothing.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::place;
use crate::toolchain::{self, DEBIAN_LLVM, LINKER_VERSION, Source, Toolchain};
use crate::ui;

/// Options of `setup`.
#[derive(clap::Args, Default)]
pub struct Arguments {
    /// Only look, and fail when something is missing.
    #[arg(long)]
    check: bool,
}

/// Debian packages of the kernel compiler.
const COMPILER: [&str; 5] = [
    "rustc-web",
    "rust-web-src",
    "cargo-web",
    "llvm-22-dev",
    "libpolly-22-dev",
];

/// A program that tests or builds call, and the Debian package that has it.
const PROGRAMS: [(&str, &str); 13] = [
    ("c++", "build-essential"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("ethtool", "ethtool"),
    ("ps", "procps"),
    ("mount", "mount"),
    ("curl", "curl"),
    ("haproxy", "haproxy"),
    ("nginx", "nginx"),
    ("wrk", "wrk"),
    ("h2load", "nghttp2-client"),
    ("apache2", "apache2"),
    ("java", "default-jre-headless"),
];

/// A file that tests or benchmarks need, what it stands for, and the Debian package that
/// has it. Of Tomcat the package without the daemon.
const FILES: [(&str, &str, &str); 2] = [
    (
        "/usr/share/tomcat10/bin/bootstrap.jar",
        "Tomcat",
        "tomcat10-common",
    ),
    (
        "/usr/lib/apache2/modules/mod_jk.so",
        "mod_jk",
        "libapache2-mod-jk",
    ),
];

/// Packages whose daemon Debian starts when it installs them, and at every boot; here they
/// are only programs for tests and benchmarks.
const DAEMONS: [&str; 3] = ["apache2", "haproxy", "nginx"];
/// What Debian asks before it starts a daemon.
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// Finds, says, installs.
pub fn run(arguments: &Arguments) -> Result<()> {
    println!("setup: looking for what building and testing need");
    let mut packages = missing_programs();
    let kernel = toolchain::find(None);
    if kernel.is_none() {
        row(
            false,
            "kernel compiler",
            "no compiler with its library's source",
        );
        if toolchain::nightly_without_source() {
            println!(
                "               (rustup's nightly lacks it: `rustup component add rust-src \
                 --toolchain nightly` would do, with LLVM's libraries)"
            );
        }
        packages.extend(COMPILER.map(str::to_owned));
    } else if let Some(kernel) = &kernel {
        row(true, "kernel compiler", &kernel.to_string());
    }
    let llvm = kernel.as_ref().map_or(DEBIAN_LLVM, |kernel| kernel.llvm);
    let linker = toolchain::linker(llvm);
    match &linker {
        Some(path) => row(true, "bpf-linker", &path.display().to_string()),
        None => row(
            false,
            "bpf-linker",
            &format!("{LINKER_VERSION} for LLVM {llvm}"),
        ),
    }
    if linker.is_none() && !toolchain::llvm_bin(llvm).join("llvm-config").exists() {
        let names = [format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")];
        packages.extend(names);
    }
    packages.retain(|package| !installed(package));
    packages.sort_unstable();
    packages.dedup();

    if packages.is_empty() && kernel.is_none() {
        bail!(
            "Debian's kernel compiler is installed, but does not work: {} should be rustc 1.95 or \
             newer, with its library's source",
            toolchain::DEBIAN_RUSTC
        );
    }
    if packages.is_empty() && linker.is_some() {
        println!("setup: everything is there\n");
        return Ok(());
    }
    println!("setup: to do:");
    if !packages.is_empty() {
        println!("  - install Debian packages: {}", packages.join(" "));
    }
    if linker.is_none() {
        println!(
            "  - build bpf-linker {LINKER_VERSION} into {} (a few minutes)",
            place::tools().display()
        );
    }
    if arguments.check {
        bail!("something is missing (see above); `cargo xtask setup` installs it");
    }
    install_packages(&packages)?;
    if linker.is_none() {
        let kernel = toolchain::find(None)
            .context("there is still no kernel compiler after the packages were installed")?;
        // The packages may have brought a compiler of another LLVM than the old one.
        if toolchain::linker(kernel.llvm).is_none() {
            build_linker(&kernel)?;
        }
    }
    println!("setup: everything is there now\n");
    Ok(())
}

fn missing_programs() -> Vec<String> {
    let mut packages = Vec::new();
    for (program, package) in PROGRAMS {
        match in_path(program) {
            Some(path) => row(true, program, &path),
            None => {
                row(false, program, &format!("in the package {package}"));
                packages.push(package.to_owned());
            }
        }
    }
    for (file, what, package) in FILES {
        let found = Path::new(file).exists();
        match found {
            true => row(true, what, file),
            false => {
                row(false, what, &format!("in the package {package}"));
                packages.push(package.to_owned());
            }
        }
    }
    packages
}

fn install_packages(packages: &[String]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if in_path("apt-get").is_none() {
        bail!(
            "this is not a Debian system (there is no apt-get). Install by other means what the \
             Debian packages {list} hold; for the kernel compiler, a rustup nightly with \
             `rustup component add rust-src --toolchain nightly` does as well, with a bpf-linker \
             {LINKER_VERSION} for its LLVM in the path"
        );
    }
    if !place::is_root() {
        bail!(
            "installing packages needs root. Run\n\n    sudo apt-get install {list}\n\nand then this again"
        );
    }
    let apt = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    ui::step(
        "apt-update",
        "Updating the package lists",
        apt().arg("update"),
    )?;
    let daemons = DAEMONS
        .iter()
        .filter(|daemon| packages.iter().any(|package| package == *daemon));
    let daemons: Vec<&str> = daemons.copied().collect();
    let quiet = Quiet::begin(!daemons.is_empty())?;
    let installed = ui::step(
        "apt-install",
        &format!("Installing {list}"),
        apt()
            .args(["install", "--yes", "--no-install-recommends"])
            .args(packages),
    );
    drop(quiet);
    // Also after a failure: some of them may be there.
    daemons.iter().for_each(|daemon| keep_stopped(daemon));
    installed
}

/// While it lives, Debian starts no daemons.
struct Quiet(bool);

impl Quiet {
    /// Nothing is done where it is not needed, or where there is a policy already.
    fn begin(needed: bool) -> Result<Self> {
        if !needed || Path::new(POLICY).exists() {
            return Ok(Self(false));
        }
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(POLICY)
            .with_context(|| format!("create {POLICY}"))?;
        let made = Self(true);
        file.write_all(b"#!/bin/sh\nexit 101\n")
            .with_context(|| format!("write {POLICY}"))?;
        Ok(made)
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        if self.0
            && let Err(error) = fs::remove_file(POLICY)
        {
            eprintln!("could not remove {POLICY}: {error}");
        }
    }
}

/// Stops a daemon that has just been installed (under a policy of this system's own it may
/// have been started), and keeps it from starting at boot.
fn keep_stopped(daemon: &str) {
    let systemd = Path::new("/run/systemd/system").exists() && in_path("systemctl").is_some();
    let commands = match systemd {
        true => vec![vec!["systemctl", "disable", "--now", daemon]],
        false => vec![
            vec!["service", daemon, "stop"],
            vec!["update-rc.d", daemon, "disable"],
        ],
    };
    for words in commands {
        let Some(program) = in_path(words[0]) else {
            continue;
        };
        let done = Command::new(program)
            .args(&words[1..])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        if !done.as_ref().is_ok_and(std::process::ExitStatus::success) {
            // It says so of daemons that do not run.
            println!("  note: `{}` ended with {done:?}", words.join(" "));
        }
    }
}

/// Builds the linker against the LLVM of the kernel compiler, with the host's cargo.
fn build_linker(kernel: &Toolchain) -> Result<()> {
    let llvm = kernel.llvm;
    let prefix = toolchain::llvm_prefix(llvm);
    if !prefix.join("bin/llvm-config").exists() {
        bail!(
            "bpf-linker for LLVM {llvm} needs {}: install LLVM {llvm} with its development files",
            prefix.display()
        );
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::iter::once(prefix.join("bin")).chain(std::env::split_paths(&path));
    let path = std::env::join_paths(path).context("the path of LLVM")?;
    ui::step(
        "bpf-linker",
        &format!("Building bpf-linker {LINKER_VERSION} for LLVM {llvm}"),
        place::cargo()
            .args(["install", "bpf-linker", "--locked", "--force"])
            .args(["--version", LINKER_VERSION])
            .args([
                "--no-default-features",
                "--features",
                &format!("llvm-{llvm}"),
            ])
            .arg("--root")
            .arg(place::tools())
            .env("LLVM_PREFIX", &prefix)
            .env("PATH", path),
    )?;
    if kernel.source == Source::Nightly {
        println!("setup: this bpf-linker is for {kernel}");
    }
    Ok(())
}

fn row(found: bool, what: &str, detail: &str) {
    let word = if found { "found" } else { "MISSING" };
    println!("  {word:<8} {what:<16} {detail}");
}

fn in_path(program: &str) -> Option<String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        // A user's path often lacks these, root's has them.
        .chain(["/usr/sbin", "/sbin"].map(|dir| Path::new(dir).to_owned()))
        .map(|dir| dir.join(program))
        .find(|candidate| candidate.is_file())
        .map(|found| found.display().to_string())
}

fn installed(package: &str) -> bool {
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${db:Status-Abbrev}", package])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .is_ok_and(|output| output.stdout.starts_with(b"ii"))
}
