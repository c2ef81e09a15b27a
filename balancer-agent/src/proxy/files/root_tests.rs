//! Document roots: what is inside is found, and nothing else, whatever lies there.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::*;

/// `root/` to serve, and `outside/` beside it.
fn tree() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("root/sub/deep")).unwrap();
    fs::create_dir(at("outside")).unwrap();
    fs::write(at("root/file"), "inside").unwrap();
    fs::write(at("root/sub/file"), "deeper").unwrap();
    fs::write(at("outside/secret"), "secret").unwrap();
    directory
}

fn settings(root: PathBuf) -> Files {
    Files {
        root,
        index: Vec::new(),
        precompressed: false,
        cache_control: None,
    }
}

fn documents(directory: &tempfile::TempDir) -> Documents {
    Documents::open(&settings(directory.path().join("root"))).unwrap()
}

/// The text of a file, `/` for a directory, or why there is none.
async fn look(documents: &Documents, name: &str) -> Result<String, Refused> {
    match documents.find(name.as_bytes()).await? {
        Opened::Directory => Ok("/".to_owned()),
        Opened::File(file, version) => {
            let text = std::io::read_to_string(&*file).unwrap();
            assert_eq!(version.size, text.len() as u64);
            Ok(text)
        }
    }
}

#[tokio::test]
async fn files_and_directories_are_found() {
    let directory = tree();
    let documents = documents(&directory);
    // The cache of names cold or warm, with RESOLVE_CACHED or without.
    let patient = Documents {
        files: documents.files.clone(),
        root: Arc::new(Root {
            handle: documents.root.handle.try_clone().unwrap(),
            path: documents.root.path.clone(),
            cached: false,
        }),
    };
    for documents in [&documents, &patient] {
        for (name, expected) in [
            ("file", Ok("inside")),
            ("sub/file", Ok("deeper")),
            (".", Ok("/")),
            ("sub", Ok("/")),
            ("sub/deep", Ok("/")),
            ("missing", Err(Refused::Absent)),
            ("sub/missing", Err(Refused::Absent)),
            ("file/x", Err(Refused::Absent)),
            ("file/", Err(Refused::Absent)),
            ("", Err(Refused::Absent)),
            ("a\0b", Err(Refused::Absent)),
        ] {
            let found = look(documents, name).await;
            assert_eq!(found.as_deref(), expected.as_ref().copied(), "{name:?}");
        }
        for name in ["x".repeat(256), "x/".repeat(3000)] {
            assert_eq!(look(documents, &name).await, Err(Refused::Absent));
        }
    }
}

#[tokio::test]
async fn links_are_followed_inside_and_refused_outside() {
    let directory = tree();
    let (root, outside) = (
        directory.path().join("root"),
        directory.path().join("outside"),
    );
    let link = |target: &Path, name: &str| symlink(target, root.join(name)).unwrap();
    // Inside.
    link(Path::new("file"), "to-file");
    link(Path::new("sub"), "to-sub");
    link(Path::new("../file"), "sub/up");
    link(Path::new("./sub/../file"), "round");
    link(Path::new("to-file"), "to-link");
    link(&root.join("file"), "absolute-file");
    link(&root.join("sub"), "absolute-sub");
    link(&root, "absolute-root");
    link(Path::new("."), "self");
    // Outside.
    link(Path::new("../outside/secret"), "out");
    link(Path::new("../outside"), "out-directory");
    link(&outside.join("secret"), "absolute-out");
    link(&outside, "absolute-out-directory");
    link(Path::new("/etc/passwd"), "passwd");
    link(Path::new("/"), "slash");
    link(Path::new(".."), "parent");
    link(Path::new("to-out"), "chain");
    link(Path::new("out"), "to-out");
    link(Path::new("sub/../../outside/secret"), "winding");
    link(&directory.path().join("rootless"), "sibling");
    fs::create_dir(directory.path().join("rootless")).unwrap();
    // Nowhere, and by way of /proc.
    link(Path::new("loop"), "loop");
    link(Path::new("missing"), "dangling");
    link(Path::new("/proc/self/root"), "magic-root");
    link(Path::new("/proc/self/exe"), "magic-exe");
    link(Path::new("/proc/self/cwd"), "magic-cwd");
    let documents = documents(&directory);
    for (name, expected) in [
        ("to-file", "inside"),
        ("to-sub", "/"),
        ("to-sub/file", "deeper"),
        ("sub/up", "inside"),
        ("round", "inside"),
        ("to-link", "inside"),
        ("absolute-file", "inside"),
        ("absolute-sub", "/"),
        ("absolute-sub/file", "deeper"),
        ("absolute-root", "/"),
        ("absolute-root/file", "inside"),
        ("self/self/file", "inside"),
    ] {
        assert_eq!(
            look(&documents, name).await.as_deref(),
            Ok(expected),
            "{name}"
        );
    }
    for name in [
        "out",
        "out-directory",
        "out-directory/secret",
        "absolute-out",
        "absolute-out-directory",
        "absolute-out-directory/secret",
        "passwd",
        "slash",
        "slash/etc/passwd",
        "parent",
        "parent/outside/secret",
        "parent/root/file",
        "chain",
        "to-out",
        "winding",
        "sibling",
        "loop",
        "dangling",
        "magic-root",
        "magic-root/etc/passwd",
        "magic-exe",
        "magic-cwd",
        // Never asked for, but no way out either.
        "../outside/secret",
        "sub/../../outside/secret",
        "/etc/passwd",
    ] {
        assert_eq!(look(&documents, name).await, Err(Refused::Absent), "{name}");
    }
}

#[tokio::test]
async fn only_regular_files_are_served_and_none_is_waited_for() {
    let directory = tree();
    let root = directory.path().join("root");
    nix::unistd::mkfifo(&root.join("fifo"), Mode::S_IRWXU).unwrap();
    let _socket = UnixListener::bind(root.join("socket")).unwrap();
    // Needs root; without it there is no device to refuse.
    let device = nix::sys::stat::mknod(
        &root.join("device"),
        nix::sys::stat::SFlag::S_IFCHR,
        Mode::S_IRWXU,
        nix::sys::stat::makedev(1, 5),
    );
    let documents = documents(&directory);
    assert_eq!(look(&documents, "fifo").await, Err(Refused::Absent));
    assert_eq!(look(&documents, "socket").await, Err(Refused::Absent));
    if device.is_ok() {
        assert!(look(&documents, "device").await.is_err());
    }
}

#[tokio::test]
async fn what_may_not_be_read_is_forbidden() {
    let directory = tree();
    let file = directory.path().join("root/file");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o0)).unwrap();
    let expected = match nix::unistd::geteuid().is_root() {
        true => Ok("inside".to_owned()),
        false => Err(Refused::Forbidden),
    };
    assert_eq!(look(&documents(&directory), "file").await, expected);
    assert_eq!(Refused::from(Errno::EACCES), Refused::Forbidden);
    assert_eq!(Refused::from(Errno::EMFILE), Refused::Busy);
    assert_eq!(Refused::from(Errno::EIO), Refused::Broken);
}

/// A directory of the path becomes a link out, over and over, while it is asked for.
#[test]
fn a_link_that_comes_at_the_wrong_moment_leads_nowhere() {
    let directory = tree();
    let root = directory.path().join("root");
    fs::write(root.join("sub/secret"), "harmless").unwrap();
    symlink("../outside", root.join("trap")).unwrap();
    let documents = documents(&directory);
    let done = std::sync::atomic::AtomicBool::new(false);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let exchange = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
            while !done.load(relaxed) {
                let here = nix::fcntl::AT_FDCWD;
                let (sub, trap) = (root.join("sub"), root.join("trap"));
                nix::fcntl::renameat2(here, &sub, here, &trap, exchange).unwrap();
            }
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let mut harmless = 0;
        for _ in 0..3000 {
            match runtime.block_on(look(&documents, "sub/secret")) {
                Ok(text) => {
                    assert_eq!(text, "harmless");
                    harmless += 1;
                }
                Err(refused) => assert!(matches!(refused, Refused::Absent | Refused::Busy)),
            }
        }
        done.store(true, relaxed);
        assert!(harmless > 0);
    });
}

#[test]
fn roots_that_are_none_are_refused_by_name() {
    let directory = tree();
    for name in ["missing", "root/file"] {
        let error = Documents::open(&settings(directory.path().join(name))).unwrap_err();
        assert!(matches!(error, OpenError::Root { .. }));
        assert!(error.to_string().contains(name), "{error}");
    }
    // A root may itself be a link.
    symlink("root", directory.path().join("link")).unwrap();
    assert!(Documents::open(&settings(directory.path().join("link"))).is_ok());
}

#[tokio::test]
async fn a_root_that_was_renamed_stays_what_it_was() {
    let directory = tree();
    let at = |name: &str| directory.path().join(name);
    let documents = documents(&directory);
    fs::rename(at("root"), at("old")).unwrap();
    fs::create_dir(at("root")).unwrap();
    fs::write(at("root/file"), "new").unwrap();
    assert_eq!(look(&documents, "file").await.as_deref(), Ok("inside"));
    let again = Documents::open(&documents.files).unwrap();
    assert_eq!(look(&again, "file").await.as_deref(), Ok("new"));
}
