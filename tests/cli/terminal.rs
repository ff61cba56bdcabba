//! `skald generate` at a terminal, and without one.

use std::path::Path;
use std::process::{Output, Stdio};
use std::time::Instant;

use crate::support::pace::PATIENCE;
use crate::support::process::skald;
use crate::support::terminal::{END, INTERRUPT, Terminal, UP};

/// A text of some ten thousand tokens: long enough to be stopped, but for a test that hangs.
const ENDLESS: [&str; 9] = [
    "--temperature",
    "2",
    "--top-p",
    "1",
    "--seed",
    "1",
    "--dtype",
    "f32",
    "-n10000",
];
/// A short one, always the same.
const SHORT: [&str; 6] = ["--temperature", "0", "--dtype", "f32", "-n", "8"];

fn with<'a>(first: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [&["generate"], first, more].concat()
}

/// Starts an interactive session that keeps its lines in a directory.
fn interactive(state: &Path, arguments: &[&str]) -> Terminal {
    let state = state.to_str().expect("a path");
    let arguments = with(&["--interactive"], arguments);
    Terminal::start(&arguments, &[("XDG_STATE_HOME", state)])
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

fn piped(arguments: &[&str], input: &str) -> Output {
    use std::io::Write;
    let mut child = skald(arguments);
    let mut child = child
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("skald runs");
    let mut stdin = child.stdin.take().expect("a pipe");
    stdin.write_all(input.as_bytes()).expect("written");
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// What a terminal shows of a text, without its colours.
fn plain(screen: &str) -> String {
    let mut shown = String::new();
    let mut parts = screen.split("\x1b[");
    shown.push_str(parts.next().unwrap_or_default());
    for part in parts {
        shown.push_str(part.split_once('m').expect("a colour").1);
    }
    shown.replace("\r\n", "\n")
}

#[test]
fn text_streams_until_ctrl_c_ends_it() {
    let mut terminal = Terminal::start(&with(&["Once", "--slide"], &ENDLESS), &[]);
    terminal.wait_for_more();
    terminal.press(INTERRUPT);
    let (code, screen) = terminal.end();
    // As a shell tells of a program that a signal ended.
    assert_eq!(code, 130, "{screen}");
}

#[test]
fn tokens_have_colours_at_a_terminal_only() {
    let arguments = with(&["Once upon a time"], &SHORT);
    let coloured = [&arguments[..], &["--show-probabilities"]].concat();
    let expected = text(&piped(&arguments, "").stdout);
    assert_eq!(expected.trim().split(' ').count(), 8, "{expected}");

    let (code, screen) = Terminal::start(&coloured, &[]).end();
    assert_eq!(code, 0);
    assert!(
        screen.contains("\x1b[33m") && screen.contains("\x1b[0m"),
        "{screen:?}"
    );
    let (told, legend) = screen.split_once("probability: ").expect("a legend");
    assert_eq!(plain(told), expected);
    assert!(plain(legend).contains("under 3 %"), "{legend}");

    for (name, value) in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let (_, screen) = Terminal::start(&coloured, &[(name, value)]).end();
        assert_eq!(screen.replace("\r\n", "\n"), expected, "{name}");
    }
    // An empty one is as if it were not set.
    let (_, screen) = Terminal::start(&coloured, &[("NO_COLOR", "")]).end();
    assert!(screen.contains('\x1b'), "{screen:?}");
    let (_, screen) = Terminal::start(&arguments, &[]).end();
    assert_eq!(screen.replace("\r\n", "\n"), expected);
    let output = piped(&coloured, "");
    assert_eq!(text(&output.stdout), expected);
    assert_eq!(text(&output.stderr), "");
}

#[test]
fn ctrl_c_stops_the_text_and_not_the_program() {
    let state = directory();
    let mut terminal = interactive(state.path(), &ENDLESS);
    terminal.wait_for("main> ");
    terminal.enter("Once");
    terminal.wait_for("\n");
    // Some words.
    terminal.wait_for(" ");
    terminal.wait_for(" ");
    terminal.press(INTERRUPT);
    terminal.wait_for(", interrupted, seed 1]");
    // The session has what was shown, and goes on.
    terminal.wait_for("main> ");
    terminal.enter("/sessions");
    terminal.wait_for("main: ");
    let tokens = terminal.wait_for(" tokens");
    assert!(tokens.parse::<usize>().expect("a number") > 1, "{tokens}");
    terminal.wait_for("main> ");
    // At the prompt it takes back the line only.
    terminal.press("some words");
    terminal.press(INTERRUPT);
    terminal.wait_for("Ctrl-D or /quit ends");
    terminal.wait_for("main> ");
    terminal.press(END);
    assert_eq!(terminal.end().0, 0);
}

#[test]
fn lines_are_kept_for_the_next_time_unless_that_is_not_wanted() {
    let state = directory();
    let line = "The miller had a daughter";
    let mut terminal = interactive(state.path(), &SHORT);
    terminal.wait_for("main> ");
    terminal.enter(line);
    terminal.wait_for("seed");
    terminal.wait_for("main> ");
    terminal.press(UP);
    terminal.wait_for(line);
    terminal.press(INTERRUPT);
    terminal.wait_for("main> ");
    terminal.enter("/quit");
    assert_eq!(terminal.end().0, 0);
    let file = state.path().join("skald/history");
    let kept = std::fs::read_to_string(&file).expect("a history");
    assert!(kept.contains(line), "{kept}");

    let mut terminal = interactive(state.path(), &SHORT);
    terminal.wait_for("main> ");
    terminal.press(UP);
    terminal.wait_for("/quit");
    terminal.press(UP);
    terminal.wait_for(line);
    terminal.press(INTERRUPT);
    terminal.wait_for("main> ");
    terminal.press(END);
    assert_eq!(terminal.end().0, 0);

    std::fs::remove_file(&file).expect("it was there");
    let mut terminal = interactive(state.path(), &[&SHORT[..], &["--no-history"]].concat());
    terminal.wait_for("main> ");
    terminal.enter("/help");
    terminal.wait_for("/retry");
    terminal.wait_for("main> ");
    terminal.press(END);
    assert_eq!(terminal.end().0, 0);
    assert!(!file.exists());
}

/// A terminal that is closed ends the program by a signal.
#[test]
fn lines_are_kept_when_the_terminal_is_closed() {
    let state = directory();
    let mut terminal = interactive(state.path(), &SHORT);
    terminal.wait_for("main> ");
    terminal.enter("The miller had a daughter");
    terminal.wait_for("seed");
    drop(terminal);
    let kept = std::fs::read_to_string(state.path().join("skald/history")).expect("a history");
    assert!(kept.contains("The miller had a daughter"), "{kept}");
}

/// A server or another program may add to a session in the same directory.
#[test]
fn only_an_own_turn_is_taken_back() {
    let (state, tales) = (directory(), directory());
    let sessions = ["--session-dir", tales.path().to_str().expect("a path")];
    let mut terminal = interactive(state.path(), &[&SHORT[..], &sessions].concat());
    terminal.wait_for("main> ");
    terminal.enter("Once upon a time");
    terminal.wait_for("seed");
    terminal.wait_for("main> ");

    // A turn that can't be taken back now can be later.
    // After this history, the text of seed 1 ends early.
    let endless = [
        &["--temperature=2", "--top-p=1", "--seed=3", "--dtype=f32"],
        &["-n10000", "--slide"][..],
        &sessions,
    ];
    let mut other = interactive(state.path(), &endless.concat());
    other.wait_for("main> ");
    other.enter("The wolf");
    other.wait_for("\n");
    other.wait_for(" ");
    terminal.enter("/undo");
    terminal.wait_for("session \"main\" is busy with another request; try again later");
    terminal.wait_for("main> ");
    // It is killed, so its turn is not kept, and the session is free once the process is gone.
    drop(other);
    let end = Instant::now() + PATIENCE;
    loop {
        terminal.enter("/undo");
        if !terminal.wait_for("main> ").contains("is busy") {
            break;
        }
        assert!(Instant::now() < end, "the session stays busy");
    }
    terminal.enter("/sessions");
    terminal.wait_for("main: 0 tokens");
    terminal.wait_for("main> ");

    terminal.enter("Once upon a time");
    terminal.wait_for("seed");
    terminal.wait_for("main> ");
    let lines = piped(
        &[&with(&["-i"], &SHORT)[..], &sessions].concat(),
        "The wolf\n/text\n",
    );
    let (_, added) = text(&lines.stdout)
        .split_once("The wolf")
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .expect("a turn");
    terminal.enter("/undo");
    terminal.wait_for("session \"main\" has been changed since by another program");
    terminal.wait_for("main> ");
    terminal.enter("/text");
    terminal.wait_for("The wolf");
    let kept = terminal.wait_for("main> ").replace("\r\n", "\n");
    assert!(kept.contains(added.trim()), "{added:?} in {kept:?}");
}

/// Sessions in a directory are those of a server there.
#[test]
fn sessions_are_forked_taken_back_and_found_again() {
    let tales = directory();
    let tales = tales.path().to_str().expect("a path");
    let arguments = [&SHORT[..], &["--session-dir", tales]].concat();
    let lines = "Once upon a time\n\n/fork other 3\n/sessions\n/open main\n/undo\n/text\n/nothing\n/delete other\n";
    let output = piped(&with(&["--interactive"], &arguments), lines);
    assert!(output.status.success());
    let told = text(&output.stdout);
    let first = text(&piped(&with(&["Once upon a time"], &SHORT), "").stdout);
    // Each text on lines of its own, without prompts or remarks.
    assert!(told.starts_with(&first), "{told:?}");
    assert!(
        told.contains("other: 3 tokens, forked from main at 3\n"),
        "{told}"
    );
    assert!(
        told.ends_with(&format!("\nOnce upon a time{first}")),
        "{told:?}"
    );
    let remarks = text(&output.stderr);
    assert_eq!(remarks, "\"/nothing\" is not a command; /help lists them\n");

    let again = piped(
        &with(&["-i", "--session", "main"], &arguments),
        "/text\n/sessions\n",
    );
    let told = text(&again.stdout);
    assert!(
        told.starts_with(&format!("Once upon a time{first}main: ")),
        "{told:?}"
    );
    assert!(!told.contains("other"), "{told}");
}

#[test]
fn a_turn_continues_the_text_as_one_prompt_would() {
    let lines = "Once upon a time\nThe wolf\n/text\n";
    let told = text(&piped(&with(&["-i"], &SHORT), lines).stdout);
    let first = text(&piped(&with(&["Once upon a time"], &SHORT), "").stdout);
    let prompt = format!("Once upon a time{} The wolf", first.trim_end_matches('\n'));
    let second = text(&piped(&with(&[&prompt], &SHORT), "").stdout);
    assert_eq!(told, format!("{first}{second}{prompt}{second}"));
}

#[test]
fn a_failed_line_is_reported_and_the_next_one_read() {
    let lines = "/undo\n/fork a\n/open a/b\n/delete nothing\n/seed x\nOnce\n";
    let output = piped(&with(&["--interactive"], &SHORT), lines);
    assert!(output.status.success());
    let remarks = text(&output.stderr);
    let remarks: Vec<&str> = remarks.lines().collect();
    for (remark, words) in remarks.iter().zip([
        "no turn to take back",
        "main",
        "the name",
        "nothing",
        "\"x\" is not a whole number",
    ]) {
        assert!(remark.contains(words), "{words:?} in {remark:?}");
    }
    assert_eq!(remarks.len(), 5, "{remarks:?}");
    assert!(text(&output.stdout).len() > 8);
}

#[test]
fn flags_that_do_not_go_together_are_refused() {
    for (arguments, words) in [
        (&["generate"][..], "<PROMPT>"),
        (&["generate", "x", "--session", "a"], "--interactive"),
        (&["generate", "x", "--session-dir", "a"], "--interactive"),
        (&["generate", "-i", "--json"], "--json"),
        (&["generate", "-i", "-"], "standard input"),
        (&["generate", "-i", "--session", "a/b"], "the name"),
        (&["generate", "-i", "--temperature=-1"], "--temperature"),
    ] {
        let output = skald(arguments).output().expect("skald runs");
        let message = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {message}");
        assert!(message.contains(words), "{words} in {message}");
    }
}
