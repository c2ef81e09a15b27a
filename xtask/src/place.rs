//! Where things are, and as whom we run.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, lchown};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

/// The repository's root.
pub fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .unwrap_or_else(|| OsString::from(env!("CARGO_MANIFEST_DIR")));
    let manifest = PathBuf::from(manifest);
    manifest.parent().map_or(manifest.clone(), Path::to_owned)
}

/// What the tasks make: tools, logs and kernel objects. The agent's build and the tests
/// look for the objects in the same place.
pub fn target() -> PathBuf {
    root().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// The project's own tools.
pub fn tools() -> PathBuf {
    target().join("tools")
}

/// The cargo that runs us; it finds subcommands among the project's own tools too.
pub fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    let path = env::var_os("PATH").unwrap_or_default();
    let ours = tools().join("bin");
    // A user's path often lacks the last two, where daemons and network tools are.
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let all = [ours]
        .into_iter()
        .chain(env::split_paths(&path))
        .chain(system);
    if let Ok(path) = env::join_paths(all) {
        command.env("PATH", path);
    }
    if env::var_os("CARGO_TARGET_DIR").is_some() {
        command.env("CARGO_TARGET_DIR", target());
    }
    // They describe this program, not what that cargo is to build.
    for (name, _) in env::vars_os() {
        if describes_caller(&name.to_string_lossy()) {
            command.env_remove(name);
        }
    }
    command
}

/// Whether `cargo run` has set this variable to describe the program it runs.
pub fn describes_caller(name: &str) -> bool {
    name.starts_with("CARGO_PKG_")
        || matches!(
            name,
            "CARGO_MANIFEST_DIR"
                | "CARGO_MANIFEST_PATH"
                | "CARGO_BIN_NAME"
                | "CARGO_CRATE_NAME"
                | "CARGO_PRIMARY_PACKAGE"
        )
}

/// Whether we are root.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Fails at once, and says how to do better, unless we are root.
pub fn need_root(task: &str) -> Result<()> {
    if !is_root() {
        bail!(
            "`cargo xtask {task}` needs root: it makes network namespaces and loads kernel programs. Run\n\
             \n    sudo -E env \"PATH=$PATH\" \"HOME=$HOME\" cargo xtask {task}\n\
             \n(the two variables let sudo find the Rust toolchain in your home)"
        );
    }
    Ok(())
}

/// Under sudo, gives what root has made in the user's target directory and cargo home
/// back to the user, who could not build there otherwise.
pub fn give_back() {
    let id = |name| env::var(name).ok().and_then(|text| text.parse().ok());
    let (Some(user), Some(group), true) = (id("SUDO_UID"), id("SUDO_GID"), is_root()) else {
        return;
    };
    let home = env::var_os("HOME").map(PathBuf::from);
    let cargo = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| home.map(|home| home.join(".cargo")));
    let owned = |path: &Path| fs::symlink_metadata(path).is_ok_and(|data| data.uid() == user);
    if owned(&root()) {
        chown(&target(), user, group);
        chown(&root().join("Cargo.lock"), user, group);
    }
    if let Some(cargo) = cargo.filter(|cargo| owned(cargo)) {
        for part in ["registry", "git"] {
            chown(&cargo.join(part), user, group);
        }
    }
}

/// Changes the owner of what is root's, below and at `path`; symbolic links are
/// changed themselves, not followed.
fn chown(path: &Path, user: u32, group: u32) {
    let Ok(data) = fs::symlink_metadata(path) else {
        return;
    };
    if data.uid() == 0
        && let Err(error) = lchown(path, Some(user), Some(group))
    {
        eprintln!("could not give {} back: {error}", path.display());
    }
    if data.is_dir() {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            chown(&entry.path(), user, group);
        }
    }
}
