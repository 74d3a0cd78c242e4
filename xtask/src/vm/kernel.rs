//! Gets Debian's kernels: downloads and unpacks their packages under target/vm, installing nothing. Apt runs
//! with a source list and state directory of its own there, so the system's apt configuration is neither
//! changed nor needed, and no root is. A package is unpacked once; a run killed half-way leaves no half
//! kernel behind, because the finished directory is moved into place.

use crate::workspace::{output, run, target_dir, text, which};
use anyhow::{Context, Result, ensure};
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
}

impl Release {
    /// Every release, oldest kernel first.
    pub(crate) const ALL: [Release; 3] = [Release::Bullseye, Release::Bookworm, Release::Trixie];

    /// The suite's name in Debian's archive.
    pub(crate) fn suite(self) -> &'static str {
        match self {
            Release::Bullseye => "bullseye",
            Release::Bookworm => "bookworm",
            Release::Trixie => "trixie",
        }
    }
}

/// A kernel to boot.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// The compressed image.
    pub(crate) image: PathBuf,
    /// The directory that holds lib/modules/VERSION; none for a kernel given by the path of its image.
    modules: Option<(PathBuf, String)>,
}

impl Kernel {
    /// The kernel whose image is the file `image`, without modules.
    pub(crate) fn at(image: &Path) -> Result<Kernel> {
        ensure!(image.is_file(), "{} is no kernel image", image.display());
        Ok(Kernel { image: image.to_owned(), modules: None })
    }

    /// The kernel of a Debian release: `package`, or the one that linux-image-amd64 stands for there.
    pub(crate) fn debian(release: Release, package: Option<&str>) -> Result<Kernel> {
        let apt = Apt::new(release)?;
        let package = match package {
            Some(name) => name.to_owned(),
            None => apt.depends("linux-image-amd64", "linux-image-")?,
        };
        let dir = apt.unpacked(&package)?;
        let version = package.strip_prefix("linux-image-").unwrap_or(&package).to_owned();
        let image = dir.join("boot").join(format!("vmlinuz-{version}"));
        ensure!(image.is_file(), "{package} has no {}", image.display());
        // Since Debian 13 packages put everything below usr/.
        if !dir.join("lib").exists() {
            std::os::unix::fs::symlink("usr/lib", dir.join("lib"))?;
        }
        let kernel = Kernel { image, modules: Some((dir, version)) };
        kernel.index()?;
        Ok(kernel)
    }

    /// The kernel's version as `uname -r` says it; none for a kernel given by path.
    pub(crate) fn version(&self) -> Option<&str> {
        self.modules.as_ref().map(|(_, version)| version.as_str())
    }

    /// Writes modules.dep, which the package's own scripts make at installation.
    fn index(&self) -> Result<()> {
        let Some((dir, version)) = &self.modules else { return Ok(()) };
        if dir.join("lib/modules").join(version).join("modules.dep").exists() {
            return Ok(());
        }
        let depmod = which("depmod").context("depmod is missing: install the package kmod")?;
        run(Command::new(depmod).arg("-b").arg(dir).arg(version))
    }

    /// The files to load for module `name`, those it depends on first.
    pub(crate) fn module_files(&self, name: &str) -> Result<Vec<PathBuf>> {
        let (dir, version) =
            self.modules.as_ref().with_context(|| format!("no modules with this kernel, so no {name}"))?;
        let modprobe = which("modprobe").context("modprobe is missing: install the package kmod")?;
        let shown =
            text(Command::new(modprobe).arg("-d").arg(dir).args(["-S", version, "--show-depends", name]))?;
        // "insmod PATH [PARAMETERS]" for a module, "builtin NAME" for what the image holds.
        Ok(shown
            .lines()
            .filter_map(|l| l.strip_prefix("insmod ")?.split(' ').next())
            .map(PathBuf::from)
            .collect())
    }
}

/// Apt on one release's archive.
struct Apt {
    release: Release,
    dir: PathBuf,
}

impl Apt {
    /// Apt on `release`'s archive; reads the package lists unless that was done before.
    fn new(release: Release) -> Result<Apt> {
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
        option("Dir::Cache", &self.dir);
        option("Dir::Cache::pkgcache", Path::new(""));
        option("Dir::Cache::srcpkgcache", Path::new(""));
        // The index has the names that this uses; the rest is 10 MB of descriptions and pictures.
        option("Acquire::Languages", Path::new("none"));
        option("Acquire::IndexTargets::deb::DEP-11::DefaultEnabled", Path::new("false"));
        command
    }

    /// The first dependency of `package` whose name starts with `prefix`.
    fn depends(&self, package: &str, prefix: &str) -> Result<String> {
        let shown = text(self.tool("apt-cache").args(["depends", package]))?;
        let found = shown.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
        found
            .map(str::to_owned)
            .find(|name| name.starts_with(prefix))
            .with_context(|| format!("{package} of {} depends on no {prefix} package", self.release.suite()))
    }

    /// The directory that holds `package`, downloaded and unpacked if it was not yet.
    fn unpacked(&self, package: &str) -> Result<PathBuf> {
        let dir = self.dir.join(package);
        if dir.exists() {
            return Ok(dir);
        }
        let partial = self.dir.join(format!("{package}.{}", std::process::id()));
        std::fs::create_dir_all(&partial)?;
        let unpack = || -> Result<()> {
            output(self.tool("apt-get").args(["download", package]).current_dir(&partial))?;
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
        unpacked.with_context(|| format!("cannot get {package} of Debian's {}", self.release.suite()))?;
        Ok(dir)
    }
}

/// The Debian archive that this machine's apt uses.
fn mirror() -> Result<String> {
    let targets = Command::new("apt-get")
        .args(["indextargets", "--format", "$(REPO_URI)", "Created-By: Packages", "Component: main"])
        .output()
        .context("apt-get is missing: give a kernel image with --kernel")?;
    let uris = String::from_utf8_lossy(&targets.stdout).into_owned();
    let debian = uris.lines().find(|uri| uri.trim_end_matches('/').ends_with("/debian"));
    debian.map(str::to_owned).context("apt here has no Debian archive: give a kernel image with --kernel")
}
