//! What happened when during one request, and what that makes.

use std::time::{Duration, Instant};

use super::dialect::{EventMeaning, Usage};
use super::failure::{Failure, FailureKind};
use super::workload::Ask;

/// The events of one request's answer.
#[derive(Debug)]
pub(super) struct Timeline {
    /// Latencies count from here: in an open loop the scheduled arrival, else `sent`.
    origin: Instant,
    sent: Instant,
    first_content: Option<Instant>,
    last_content: Instant,
    last_event: Instant,
    gaps: Vec<Duration>,
    usage: Usage,
    ended: bool,
}

/// One request that was answered in full.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answered {
    /// From the scheduled arrival until it was sent; zero in a closed loop.
    pub wait: Duration,
    /// Time to first token; `None` if there was no content.
    pub first_token: Option<Duration>,
    /// Until the last event.
    pub total: Duration,
    /// Between events with content that follow one another.
    pub gaps: Vec<Duration>,
    /// Tokens of the prompt, as reported, else as estimated.
    pub prompt_tokens: usize,
    /// Tokens generated, as reported, else events with content.
    pub output_tokens: usize,
    /// Tokens asked for.
    pub asked_tokens: usize,
    /// The server reported how many tokens it generated.
    pub reported: bool,
}

impl Timeline {
    /// A request that is sent at `sent`. `arrival`: when it should have been sent.
    pub fn new(sent: Instant, arrival: Option<Instant>) -> Self {
        Self {
            origin: arrival.unwrap_or(sent),
            sent,
            first_content: None,
            last_content: sent,
            last_event: sent,
            gaps: Vec::new(),
            usage: Usage::default(),
            ended: false,
        }
    }

    /// Notes an event that arrived at `at`.
    ///
    /// # Errors
    /// If the event is one.
    pub fn note(&mut self, at: Instant, event: EventMeaning) -> Result<(), Failure> {
        if let Some(message) = event.error {
            return Err(Failure::new(FailureKind::InStream, message));
        }
        self.last_event = at;
        self.ended |= event.end;
        self.usage.prompt = event.usage.prompt.or(self.usage.prompt);
        self.usage.output = event.usage.output.or(self.usage.output);
        if event.content {
            if self.first_content.is_none() {
                self.first_content = Some(at);
            } else {
                self.gaps.push(at - self.last_content);
            }
            self.last_content = at;
        }
        Ok(())
    }

    /// The connection is at its end.
    ///
    /// # Errors
    /// If the answer is not.
    pub fn finish(self, ask: &Ask) -> Result<Answered, Failure> {
        if !self.ended {
            let message = match self.first_content {
                Some(_) => format!("after {} events with content", self.gaps.len() + 1),
                None => "before any content".to_owned(),
            };
            return Err(Failure::new(FailureKind::BrokenOff, message));
        }
        let events = self.first_content.map_or(0, |_| self.gaps.len() + 1);
        Ok(Answered {
            wait: self.sent.saturating_duration_since(self.origin),
            first_token: self.first_content.map(|at| at - self.origin),
            total: self.last_event - self.origin,
            gaps: self.gaps,
            prompt_tokens: self.usage.prompt.unwrap_or(ask.prompt_tokens),
            output_tokens: self.usage.output.unwrap_or(events),
            asked_tokens: ask.output_tokens,
            reported: self.usage.output.is_some(),
        })
    }
}

impl Answered {
    /// Events with content.
    pub fn events(&self) -> usize {
        self.first_token.map_or(0, |_| self.gaps.len() + 1)
    }

    /// Tokens in one event on average, at least 1: a server may send several tokens at once.
    fn tokens_per_event(&self) -> f64 {
        (self.output_tokens as f64 / self.events().max(1) as f64).max(1.0)
    }

    /// Inter-token latencies in milliseconds: the gaps, each divided by the tokens per event.
    pub fn inter_token_ms(&self) -> impl Iterator<Item = f64> {
        let tokens = self.tokens_per_event();
        self.gaps.iter().map(move |&gap| ms(gap) / tokens)
    }

    /// Milliseconds per token after the first; `None` with fewer than two tokens or events.
    pub fn per_token_ms(&self) -> Option<f64> {
        let after_first = self.output_tokens.checked_sub(1).filter(|&n| n > 0)?;
        let writing: Duration = self.gaps.iter().sum();
        (!self.gaps.is_empty()).then(|| ms(writing) / after_first as f64)
    }
}

/// In milliseconds.
pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask() -> Ask {
        Ask {
            prompt: String::new(),
            prompt_tokens: 4,
            output_tokens: 6,
        }
    }

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    fn content() -> EventMeaning {
        EventMeaning {
            content: true,
            ..EventMeaning::default()
        }
    }

    fn end(output: Option<usize>) -> EventMeaning {
        EventMeaning {
            end: true,
            usage: Usage {
                prompt: output.map(|_| 5),
                output,
            },
            ..EventMeaning::default()
        }
    }

    /// Content at 10, 20 and 50 ms after `sent`, the end at 60.
    fn answered(arrival: Option<Instant>, sent: Instant, output: Option<usize>) -> Answered {
        let mut timeline = Timeline::new(sent, arrival);
        for at in [10, 20, 50] {
            timeline.note(after(sent, at), content()).unwrap();
        }
        timeline.note(after(sent, 60), end(output)).unwrap();
        timeline.finish(&ask()).unwrap()
    }

    #[test]
    fn times_count_from_when_it_was_sent() {
        let answered = answered(None, Instant::now(), None);
        assert_eq!(answered.wait, Duration::ZERO);
        assert_eq!(answered.first_token, Some(Duration::from_millis(10)));
        assert_eq!(answered.total, Duration::from_millis(60));
        assert_eq!(answered.inter_token_ms().collect::<Vec<_>>(), [10.0, 30.0]);
        assert_eq!((answered.prompt_tokens, answered.output_tokens), (4, 3));
        assert!(!answered.reported);
        assert_eq!(answered.per_token_ms(), Some(20.0));
    }

    #[test]
    fn in_an_open_loop_times_count_from_the_scheduled_arrival() {
        let arrival = Instant::now();
        let answered = answered(Some(arrival), after(arrival, 100), None);
        assert_eq!(answered.wait, Duration::from_millis(100));
        assert_eq!(answered.first_token, Some(Duration::from_millis(110)));
        assert_eq!(answered.total, Duration::from_millis(160));
    }

    #[test]
    fn several_tokens_in_an_event_share_its_gap() {
        let answered = answered(None, Instant::now(), Some(6));
        assert_eq!((answered.prompt_tokens, answered.output_tokens), (5, 6));
        assert_eq!(answered.inter_token_ms().collect::<Vec<_>>(), [5.0, 15.0]);
        assert_eq!(answered.per_token_ms(), Some(8.0));
    }

    #[test]
    fn an_answer_without_content_has_no_first_token() {
        let sent = Instant::now();
        let mut timeline = Timeline::new(sent, None);
        timeline.note(after(sent, 9), end(Some(0))).unwrap();
        let answered = timeline.finish(&ask()).unwrap();
        assert_eq!((answered.first_token, answered.events()), (None, 0));
        assert_eq!(answered.per_token_ms(), None);
    }

    #[test]
    fn an_answer_that_breaks_off_or_tells_of_an_error_is_a_failure() {
        let sent = Instant::now();
        let mut timeline = Timeline::new(sent, None);
        timeline.note(after(sent, 1), content()).unwrap();
        let failure = timeline.finish(&ask()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::BrokenOff);
        let error = EventMeaning {
            error: Some("no memory".to_owned()),
            ..content()
        };
        let failure = Timeline::new(sent, None).note(sent, error).unwrap_err();
        assert_eq!(failure, Failure::new(FailureKind::InStream, "no memory"));
    }
}
