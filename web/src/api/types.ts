/** What the server sends: only the fields that the page reads. */

export interface Info {
  version: string;
  model: {
    id: string;
    architecture: string;
    parameters: number;
    dtype: string;
    device: string;
    n_layer: number;
    n_head: number;
    n_embd: number;
    n_inner?: number;
    n_positions: number;
    vocab_size: number;
    end_of_text: number[];
    chat_template: string;
    fingerprint: string;
    created: number;
  };
  limits: { max_top_logprobs: number };
  sampling_defaults: {
    temperature: number | null;
    top_k: number | null;
    top_p: number | null;
    min_p: number | null;
    typical_p: number | null;
    repetition_penalty: number | null;
    max_new_tokens: number | null;
  };
  features: string[];
}

export interface SessionSummary {
  id: string;
  token_count: number;
  created: number;
  last_used: number;
  busy: boolean;
  forked_from?: { id: string; at: number } | null;
}

export interface Session extends SessionSummary {
  text: string;
  tokens: number[];
}

export interface SessionList {
  data: SessionSummary[];
}

export interface Logprobs {
  tokens: string[];
  token_logprobs: (number | null)[];
  top_logprobs: (Record<string, number> | null)[];
  token_ids: number[];
  /** Ids of `top_logprobs`, the most likely first. */
  top_token_ids: (number[] | null)[];
}

export interface Completion {
  choices: {
    text: string;
    logprobs: Logprobs | null;
    finish_reason: string | null;
    seed?: number;
  }[];
  usage: { prompt_tokens: number; completion_tokens: number } | null;
}

export interface ChatChunk {
  choices: {
    delta: { role?: string; content?: string | null };
    finish_reason: string | null;
    logprobs?: {
      content: {
        token: string;
        logprob: number;
        bytes: number[];
        top_logprobs: { token: string; logprob: number; bytes: number[] }[];
      }[];
    } | null;
  }[];
}

export interface ErrorBody {
  error?: string | { message?: string; code?: string | null; param?: string | null };
  error_type?: string;
}
