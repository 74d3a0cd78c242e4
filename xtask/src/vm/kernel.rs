//! Kernels to boot, their modules, and the lab's own module built for them.

use super::apt::{Apt, Release};
use crate::workspace::{output, root, run, target_dir, text, which};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A kernel to boot.
#[derive(Debug, Clone)]
pub(crate) struct Kernel {
    /// The compressed image.
    pub(crate) image: PathBuf,
    /// Where the rest of it is; none for a kernel given by the path of its image.
    package: Option<Package>,
}

/// An unpacked kernel package.
#[derive(Debug, Clone)]
struct Package {
    release: Release,
    /// The directory that holds lib/modules/VERSION.
    dir: PathBuf,
    /// As `uname -r` says it.
    version: String,
}

impl Kernel {
    /// The kernel whose image is the file `image`, without modules.
    pub(crate) fn at(image: &Path) -> Result<Kernel> {
        ensure!(image.is_file(), "{} is no kernel image", image.display());
        Ok(Kernel { image: image.to_owned(), package: None })
    }

    /// The kernel of a Debian release: `package`, or the one that linux-image-amd64 stands for there.
    pub(crate) fn debian(release: Release, package: Option<&str>) -> Result<Kernel> {
        let apt = Apt::new(release)?;
        let package = match package {
            Some(name) => name.to_owned(),
            None => apt.depends("linux-image-amd64", "linux-image-")?,
        };
        let dir = apt.unpacked(&[&package])?;
        let version = package.strip_prefix("linux-image-").unwrap_or(&package).to_owned();
        let image = dir.join("boot").join(format!("vmlinuz-{version}"));
        ensure!(image.is_file(), "{package} has no {}", image.display());
        // Since Debian 13 packages put everything below usr/.
        if !dir.join("lib").exists() {
            std::os::unix::fs::symlink("usr/lib", dir.join("lib"))?;
        }
        // The package's own scripts would do this at installation.
        if !dir.join("lib/modules").join(&version).join("modules.dep").exists() {
            run(tool("depmod")?.arg("-b").arg(&dir).arg(&version))?;
        }
        Ok(Kernel { image, package: Some(Package { release, dir, version }) })
    }

    /// The kernel's version as `uname -r` says it; none for a kernel given by path.
    pub(crate) fn version(&self) -> Option<&str> {
        self.package.as_ref().map(|package| package.version.as_str())
    }

    /// The files to load for module `name`, those it depends on first.
    pub(super) fn module_files(&self, name: &str) -> Result<Vec<PathBuf>> {
        let Package { dir, version, .. } = self.package()?;
        let shown = text(tool("modprobe")?.arg("-d").arg(dir).args(["-S", version, "--show-depends", name]))?;
        // "insmod PATH [PARAMETERS]" for a module, "builtin NAME" for what the image holds.
        let files = shown.lines().filter_map(|line| line.strip_prefix("insmod ")?.split(' ').next());
        Ok(files.map(PathBuf::from).collect())
    }

    /// Builds the lab's leaking module for this kernel and returns its file. Debian 12's only: the build tools
    /// of Debian 13 need its C library, and the kernel of Debian 11 needs the compiler of Debian 11.
    pub(crate) fn leak_module(&self) -> Result<PathBuf> {
        const NAME: &str = "ebbtide_leak";
        let Package { release, version, .. } = self.package()?;
        ensure!(*release == Release::Bookworm, "modules can be built for Debian 12's kernels only");
        let headers = format!("linux-headers-{version}");
        let apt = Apt::new(*release)?;
        let common = apt.depends(&headers, "linux-headers-")?;
        let kbuild = apt.depends(&headers, "linux-kbuild-")?;
        let sources = apt.unpacked(&[&headers, &common, &kbuild])?.join("usr/src");
        let build = target_dir(&format!("vm/module-{version}"))?;
        for file in ["Kbuild", "ebbtide_leak.c"] {
            let from = root().join("lab/module").join(file);
            std::fs::copy(&from, build.join(file))
                .with_context(|| format!("cannot copy {}", from.display()))?;
        }
        // The headers' own Makefile includes the common one by its installed path.
        let mut make = Command::new("make");
        make.current_dir(sources.join(&headers)).arg("-f").arg(sources.join(common).join("Makefile"));
        make.arg(format!("M={}", build.display())).args(["CC=gcc-12", "modules"]);
        output(&mut make)?;
        Ok(build.join(NAME).with_extension("ko"))
    }

    fn package(&self) -> Result<&Package> {
        self.package.as_ref().context("a kernel given by the path of its image has no modules")
    }
}

fn tool(name: &str) -> Result<Command> {
    let path = which(name).with_context(|| format!("{name} is missing: install the package kmod"))?;
    Ok(Command::new(path))
}
