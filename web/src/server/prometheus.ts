/** The Prometheus text format: as much of it as Skald's own metrics need. */

/** A histogram: cumulative counts by upper bound. */
export type Buckets = [bound: number, count: number][];

export interface Metrics {
  /** Metrics without labels, by name. */
  values: Map<string, number>;
  histograms: Map<string, Buckets>;
}

/** Reads the metrics whose names begin with `skald_` and that have no labels but a histogram's `le`. */
export function parseMetrics(text: string): Metrics {
  const values = new Map<string, number>();
  const histograms = new Map<string, Buckets>();
  for (const line of text.split('\n')) {
    const bucket = /^(skald_\w+)_bucket\{le="([^"]+)"\} (\S+)/.exec(line);
    const plain = bucket ? null : /^(skald_\w+) (\S+)/.exec(line);
    if (bucket) {
      const [, name = '', bound = '', count = ''] = bucket;
      const buckets = histograms.get(name) ?? [];
      buckets.push([bound === '+Inf' ? Infinity : Number(bound), Number(count)]);
      histograms.set(name, buckets);
    } else if (plain) {
      values.set(plain[1] ?? '', Number(plain[2]));
    }
  }
  return { values, histograms };
}
