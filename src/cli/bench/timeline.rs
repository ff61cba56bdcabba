//! The times of one request's events, and the latencies derived from them.

use std::time::{Duration, Instant};

use super::dialect::{EventMeaning, Usage};
use super::request_failure::{FailureKind, RequestFailure};
use super::workload::RequestSpec;

/// The events of one request's response.
#[derive(Debug)]
pub(super) struct Timeline {
    /// Start of all latencies: the scheduled arrival in an open loop, otherwise `sent`.
    origin: Instant,
    sent: Instant,
    first_content: Option<Instant>,
    last_content: Instant,
    last_event: Instant,
    gaps: Vec<Duration>,
    usage: Usage,
    ended: bool,
}

/// A request with a complete response.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Answered {
    /// Time from the scheduled arrival to sending; zero in a closed loop.
    pub wait: Duration,
    /// Time to first token; `None` if there was no content.
    pub first_token: Option<Duration>,
    /// Time to the last event.
    pub total: Duration,
    /// Times between consecutive events with content.
    pub gaps: Vec<Duration>,
    /// Prompt tokens as reported, or estimated.
    pub prompt_tokens: usize,
    /// Generated tokens as reported, or the number of events with content.
    pub output_tokens: usize,
    /// Requested tokens.
    pub asked_tokens: usize,
    /// Whether the server reported the number of generated tokens.
    pub reported: bool,
}

impl Timeline {
    /// Creates the timeline of a request sent at `sent` and scheduled for `arrival`.
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

    /// Records an event that arrived at `at`.
    ///
    /// # Errors
    /// If the event reports an error.
    pub fn record(&mut self, at: Instant, event: EventMeaning) -> Result<(), RequestFailure> {
        if let Some(message) = event.error {
            return Err(RequestFailure::new(FailureKind::InStream, message));
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

    /// Ends the timeline at the end of the stream.
    ///
    /// # Errors
    /// If the response is incomplete.
    pub fn finish(self, spec: &RequestSpec) -> Result<Answered, RequestFailure> {
        if !self.ended {
            let message = match self.first_content {
                Some(_) => format!("after {} events with content", self.gaps.len() + 1),
                None => "before any content".to_owned(),
            };
            return Err(RequestFailure::new(FailureKind::BrokenOff, message));
        }
        let events = self.first_content.map_or(0, |_| self.gaps.len() + 1);
        Ok(Answered {
            wait: self.sent.saturating_duration_since(self.origin),
            first_token: self.first_content.map(|at| at - self.origin),
            total: self.last_event - self.origin,
            gaps: self.gaps,
            prompt_tokens: self.usage.prompt.unwrap_or(spec.prompt_tokens),
            output_tokens: self.usage.output.unwrap_or(events),
            asked_tokens: spec.output_tokens,
            reported: self.usage.output.is_some(),
        })
    }
}

impl Answered {
    /// Returns the number of events with content.
    pub fn events(&self) -> usize {
        self.first_token.map_or(0, |_| self.gaps.len() + 1)
    }

    /// Returns the mean tokens per event, at least 1: a server may send several tokens at once.
    fn tokens_per_event(&self) -> f64 {
        (self.output_tokens as f64 / self.events().max(1) as f64).max(1.0)
    }

    /// Returns the inter-token latencies in milliseconds: the gaps divided by the tokens per event.
    pub fn inter_token_ms(&self) -> impl Iterator<Item = f64> {
        let tokens = self.tokens_per_event();
        self.gaps.iter().map(move |&gap| ms(gap) / tokens)
    }

    /// Returns the milliseconds per token after the first; `None` with fewer than two tokens or events.
    pub fn per_token_ms(&self) -> Option<f64> {
        let after_first = self.output_tokens.checked_sub(1).filter(|&n| n > 0)?;
        let writing: Duration = self.gaps.iter().sum();
        (!self.gaps.is_empty()).then(|| ms(writing) / after_first as f64)
    }
}

/// Converts a duration to milliseconds.
pub(super) fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> RequestSpec {
        RequestSpec {
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

    /// Returns a request with content 10, 20 and 50 ms after `sent`, and the end after 60 ms.
    fn answered(arrival: Option<Instant>, sent: Instant, output: Option<usize>) -> Answered {
        let mut timeline = Timeline::new(sent, arrival);
        for at in [10, 20, 50] {
            timeline.record(after(sent, at), content()).unwrap();
        }
        timeline.record(after(sent, 60), end(output)).unwrap();
        timeline.finish(&spec()).unwrap()
    }

    #[test]
    fn times_count_from_sending() {
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
    fn a_response_without_content_has_no_first_token() {
        let sent = Instant::now();
        let mut timeline = Timeline::new(sent, None);
        timeline.record(after(sent, 9), end(Some(0))).unwrap();
        let answered = timeline.finish(&spec()).unwrap();
        assert_eq!((answered.first_token, answered.events()), (None, 0));
        assert_eq!(answered.per_token_ms(), None);
    }

    #[test]
    fn an_interrupted_stream_or_an_error_event_is_a_failure() {
        let sent = Instant::now();
        let mut timeline = Timeline::new(sent, None);
        timeline.record(after(sent, 1), content()).unwrap();
        let failure = timeline.finish(&spec()).unwrap_err();
        assert_eq!(failure.kind, FailureKind::BrokenOff);
        let error = EventMeaning {
            error: Some("no memory".to_owned()),
            ..content()
        };
        let failure = Timeline::new(sent, None).record(sent, error).unwrap_err();
        assert_eq!(
            failure,
            RequestFailure::new(FailureKind::InStream, "no memory")
        );
    }
}
