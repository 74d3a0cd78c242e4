//! Gets Debian's packages: downloads and unpacks them under target/vm, installing nothing. Apt runs with a
//! source list and state directory of its own there, so the system's apt configuration is neither changed nor
//! needed, and no root is. A package is unpacked once; a run killed half-way leaves no half package behind,
//! because the finished directory is moved into place.

use crate::workspace::{output, run, target_dir, text};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A Debian release, named by what it brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Release {
    /// Debian 11: Linux 5.10
    Bullseye,
    /// Debian 12: Linux 6.1
    Bookworm,
    /// Debian 13: Linux 6.12
    Trixie,
    /// Debian 14, which still changes: only libraries and programs are taken from it
    #[value(skip)]
    Forky,
}

impl Release {
    /// Every release of which a kernel is run, the oldest first.
    pub(crate) const ALL: [Release; 3] = [Release::Bullseye, Release::Bookworm, Release::Trixie];

    /// The suite's name in Debian's archive.
    pub(crate) fn suite(self) -> &'static str {
        match self {
            Release::Bullseye => "bullseye",
            Release::Bookworm => "bookworm",
            Release::Trixie => "trixie",
            Release::Forky => "forky",
        }
    }
}

/// Apt on one release's archive.
pub(crate) struct Apt {
    release: Release,
    dir: PathBuf,
}

impl Apt {
    /// Apt on `release`'s archive; reads the package lists unless that was done before.
    pub(crate) fn new(release: Release) -> Result<Apt> {
        let dir = target_dir("vm")?.join(release.suite());
        let apt = Apt { release, dir };
        if !apt.dir.join("listed").exists() {
            apt.list()?;
        }
        Ok(apt)
    }

    fn list(&self) -> Result<()> {
        const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
        std::fs::create_dir_all(self.dir.join("lists/partial"))?;
        std::fs::create_dir_all(self.dir.join("archives/partial"))?;
        let signed =
            if Path::new(KEYRING).exists() { format!("[signed-by={KEYRING}] ") } else { String::new() };
        let source = format!("deb {signed}{} {} main\n", mirror()?, self.release.suite());
        std::fs::write(self.dir.join("sources.list"), source)?;
        output(self.tool("apt-get").arg("update"))?;
        Ok(std::fs::write(self.dir.join("listed"), b"")?)
    }

    fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        let mut option = |key: &str, value: &Path| {
            command.arg("-o").arg(format!("{key}={}", value.display()));
        };
        option("Dir::Etc::sourcelist", &self.dir.join("sources.list"));
        option("Dir::Etc::sourceparts", Path::new("-"));
        option("Dir::State::lists", &self.dir.join("lists"));
        // What is installed here would be preferred to an older release's, and cannot be downloaded.
        option("Dir::State::status", Path::new("/dev/null"));
        option("Dir::Cache", &self.dir);
        option("Dir::Cache::pkgcache", Path::new(""));
        option("Dir::Cache::srcpkgcache", Path::new(""));
        // The index has the names that this uses; the rest is 10 MB of descriptions and pictures.
        option("Acquire::Languages", Path::new("none"));
        option("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", Path::new("false"));
        command
    }

    /// The first dependency of `package` whose name starts with `prefix`.
    pub(super) fn depends(&self, package: &str, prefix: &str) -> Result<String> {
        let shown = text(self.tool("apt-cache").args(["depends", package]))?;
        let found = shown.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        found
            .map(str::to_owned)
            .find(|name| name.starts_with(prefix))
            .with_context(|| format!("{package} of {} depends on no {prefix} package", self.release.suite()))
    }

    /// A directory that holds `packages` unpacked over each other, downloaded if they were not yet. It has the
    /// name of the first.
    pub(crate) fn unpacked(&self, packages: &[&str]) -> Result<PathBuf> {
        let name = packages.first().context("no package to unpack")?;
        let dir = self.dir.join(name);
        if dir.exists() {
            return Ok(dir);
        }
        let partial = self.dir.join(format!("{name}.{}", std::process::id()));
        std::fs::create_dir_all(&partial)?;
        let unpack = || -> Result<()> {
            let download =
                || output(self.tool("apt-get").arg("download").args(packages).current_dir(&partial));
            // Lists grow old: the archive may meanwhile hold a newer version only.
            if download().is_err() {
                self.list()?;
                download()?;
            }
            for entry in std::fs::read_dir(&partial)?.collect::<std::io::Result<Vec<_>>>()? {
                run(Command::new("dpkg-deb").arg("--extract").arg(entry.path()).arg(&partial))?;
                std::fs::remove_file(entry.path())?;
            }
            Ok(())
        };
        let unpacked = unpack();
        if unpacked.is_err() || std::fs::rename(&partial, &dir).is_err() {
            // A failed attempt, or one that another run was faster with.
            std::fs::remove_dir_all(&partial)?;
        }
        unpacked.with_context(|| format!("cannot get {name} of Debian's {}", self.release.suite()))?;
        Ok(dir)
    }
}

/// The Debian archive that this machine's apt uses.
fn mirror() -> Result<String> {
    let targets = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Component: main"])
        .output()
        .context("apt-get is missing; a kernel image can be given with --kernel")?;
    let uris = String::from_utf8_lossy(&targets.stdout).into_owned();
    let debian = uris.lines().find(|uri| uri.trim_end_matches('/').ends_with("/debian"));
    debian
        .map(str::to_owned)
        .context("apt here has no Debian archive; a kernel image can be given with --kernel")
}
