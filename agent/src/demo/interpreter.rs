//! The interpreter that the demo ships: Python or Perl, whichever this host has.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::host::HostFiles;

/// The system's own interpreters come before those that a user has installed elsewhere.
const CANDIDATES: [(&str, &Language); 4] = [
    ("/usr/bin/python3", &PYTHON),
    ("/usr/bin/perl", &PERL),
    ("python3", &PYTHON),
    ("perl", &PERL),
];
/// Modules from elsewhere than the standard library may be gigabytes; this much is shipped.
const MODULE_BYTES: u64 = 128 << 20;

/// What is asked of an interpreter, and what a program in its language looks like.
struct Language {
    name: &'static str,
    /// Prints the interpreter's own path, then the directories of its modules, standard library
    /// first, one per line.
    survey: &'static str,
    /// The flag before program text.
    evaluate: &'static str,
    /// Modules that a service might load; those that this host lacks are left out.
    modules: [&'static [&'static str]; 2],
    /// One import.
    import: fn(&str) -> String,
    /// Prints the service's name and how many modules it has loaded.
    greet: fn(&str) -> String,
}

static PYTHON: Language = Language {
    name: "Python",
    survey: "import sys, sysconfig\n\
             print(sys.executable)\n\
             print(sysconfig.get_path('stdlib'))\n\
             print(*[p for p in sys.path if p], sep='\\n')",
    evaluate: "-c",
    modules: [
        &["json", "logging", "argparse", "datetime", "hashlib", "urllib.request", "http.server"],
        &[
            "json",
            "logging",
            "argparse",
            "decimal",
            "csv",
            "email.message",
            "xml.etree.ElementTree",
        ],
    ],
    import: |module| format!("import {module}\n"),
    greet: |service| {
        format!("import sys\nprint('{service} is up,', len(sys.modules), 'modules loaded')\n")
    },
};

static PERL: Language = Language {
    name: "Perl",
    survey: "print \"$^X\\n\"; print \"$_\\n\" for reverse grep { -d } @INC",
    evaluate: "-e",
    modules: [
        &["strict", "POSIX", "List::Util", "Data::Dumper", "File::Find", "Time::HiRes", "Storable"],
        &["strict", "POSIX", "Socket", "Getopt::Long", "Text::Wrap", "Encode", "IO::Select"],
    ],
    import: |module| format!("use {module};\n"),
    greet: |service| {
        format!("printf \"{service} is up, %d modules loaded\\n\", scalar keys %INC;\n")
    },
};

/// An interpreter of this host and what it needs to run elsewhere.
pub struct Interpreter {
    language: &'static Language,
    /// The executable.
    pub path: PathBuf,
    /// The executable, its shared libraries and the standard library.
    pub base: HostFiles,
    /// The modules from elsewhere, with their shared libraries.
    pub modules: HostFiles,
}

impl Interpreter {
    /// The first interpreter of the host that runs.
    ///
    /// # Errors
    /// Where there is none (`NotFound`), or its files cannot be read.
    pub fn find() -> io::Result<Self> {
        for (program, language) in CANDIDATES {
            if let Some(lines) = output(program, language.evaluate, language.survey) {
                return Self::survey(language, &lines);
            }
        }
        Err(io::Error::new(io::ErrorKind::NotFound, "this host has neither python3 nor perl"))
    }

    /// `Python` or `Perl`.
    pub fn name(&self) -> &'static str {
        self.language.name
    }

    /// The text of the first (0) or second (1) service.
    pub fn service(&self, which: usize, name: &str) -> String {
        let modules = self.language.modules[which.min(1)].iter().filter(|module| {
            let import = (self.language.import)(module);
            output(&self.path, self.language.evaluate, &import).is_some()
        });
        let imports: String = modules.map(|module| (self.language.import)(module)).collect();
        imports + &(self.language.greet)(name)
    }

    fn survey(language: &'static Language, lines: &str) -> io::Result<Self> {
        let mut paths = lines.lines().map(Path::new).filter(|path| path.is_absolute());
        let executable = paths.next().ok_or(io::ErrorKind::NotFound)?;
        let mut base = HostFiles::default();
        let path = executable.to_owned();
        base.add(&path)?;
        let mut directories = paths.filter(|path| path.is_dir());
        if let Some(standard) = directories.next() {
            base.add_tree(standard, base.bytes() + MODULE_BYTES)?;
        }
        base.add_libraries()?;
        let mut all = base.clone();
        for directory in directories {
            all.add_tree(directory, base.bytes() + MODULE_BYTES)?;
        }
        all.add_libraries()?;
        let modules = all.above(&base);
        Ok(Self { language, path, base, modules })
    }
}

/// What a program text prints, if it runs to its end.
fn output(program: impl AsRef<std::ffi::OsStr>, flag: &str, text: &str) -> Option<String> {
    let mut command = Command::new(program);
    command.arg(flag).arg(text).stdin(Stdio::null()).stderr(Stdio::null());
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interpreter_of_this_host_is_found_with_its_library() {
        let Ok(interpreter) = Interpreter::find() else { return };
        assert!(interpreter.base.entries().any(|(path, _)| path == interpreter.path));
        assert!(interpreter.base.bytes() > 1 << 20);
        let service = interpreter.service(0, "one");
        assert!(
            output(&interpreter.path, interpreter.language.evaluate, &service)
                .is_some_and(|text| text.starts_with("one is up, "))
        );
    }
}
