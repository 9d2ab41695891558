"""The views of `mvqkd sql`, as SQL. `{s}` is the schema of a table, `{n}` its number of codebooks.

Codebooks, codes and frames count from 0, as everywhere but in SQL's own lists.
"""

VIEWS = """
CREATE VIEW {s}.dead_codes AS
    SELECT codebook, code FROM {s}.usage WHERE times = 0 ORDER BY codebook, code;
COMMENT ON VIEW {s}.dead_codes IS 'codes that never occur';

CREATE VIEW {s}.codebooks AS
    SELECT codebook, count(*) FILTER (times > 0) AS used, count(*) FILTER (times = 0) AS dead,
        -sum(share * log2(share)) FILTER (times > 0) + 0.0 AS entropy_bits, max(share) AS largest_share
    FROM {s}.usage GROUP BY codebook ORDER BY codebook;
COMMENT ON VIEW {s}.codebooks IS 'use of each codebook; 8 bits are 256 codes used alike';

CREATE VIEW {s}.totals AS
    SELECT count(*) AS shards, coalesce(sum(cuts), 0)::BIGINT AS cuts, coalesce(sum(frames), 0)::BIGINT AS frames,
        coalesce(sum(hours), 0.0) AS hours, coalesce(sum(bytes), 0)::BIGINT AS bytes,
        sum(bytes) / nullif(sum(hours), 0) AS bytes_per_hour,
        sum(bytes) / nullif(sum(frames) * {n}, 0) AS bytes_per_code,
        sum(mean_rrl * cuts) / nullif(sum(cuts), 0) AS mean_rrl
    FROM {s}.shards;
COMMENT ON VIEW {s}.totals IS 'hours and bytes of all shards';

CREATE VIEW {s}.speakers AS
    SELECT speaker, count(*) AS cuts, sum(duration) / 3600 AS hours, avg(rrl) AS mean_rrl, max(rrl) AS worst_rrl
    FROM {s}.utterances GROUP BY speaker ORDER BY hours DESC, speaker;
COMMENT ON VIEW {s}.speakers IS 'hours and loss of each speaker';

CREATE VIEW {s}.outliers AS
    WITH middle AS (SELECT median(rrl) AS m FROM {s}.utterances),
        spread AS (SELECT 1.4826 * median(abs(rrl - m)) AS d FROM {s}.utterances, middle)
    SELECT cut_id, speaker, duration, rrl, (rrl - m) / nullif(d, 0) AS z, text, shard
    FROM {s}.utterances, middle, spread WHERE rrl IS NOT NULL ORDER BY rrl DESC, cut_id;
COMMENT ON VIEW {s}.outliers IS
    'cuts by loss, the worst first; z: distance from the median in robust standard deviations (MAD), 3.5 is far';

CREATE VIEW {s}.frames AS
    WITH listed AS (
        SELECT cut_id, speaker, generate_subscripts(codes, 1) - 1 AS frame, unnest(codes) AS codes FROM {s}.utterances
    )
    SELECT cut_id, speaker, frame, codebook::INTEGER AS codebook, codes[codebook + 1] AS code
    FROM listed, range({n}) AS numbers(codebook);
COMMENT ON VIEW {s}.frames IS 'every code in a row of its own: choose cuts, or count';

CREATE VIEW {s}.usage_by_speaker AS
    WITH counts AS (SELECT speaker, codebook, code, count(*) AS times FROM {s}.frames GROUP BY ALL),
        shares AS (SELECT *, times / sum(times) OVER (PARTITION BY speaker, codebook) AS part FROM counts)
    SELECT speaker, codebook, sum(shares.times)::BIGINT AS frames, count(*) AS used,
        -sum(part * log2(part)) + 0.0 AS entropy_bits,
        (sum(abs(part - share)) + 1 - sum(share)) / 2 AS distance
    FROM shares JOIN {s}.usage AS whole USING (codebook, code)
    GROUP BY speaker, codebook ORDER BY speaker, codebook;
COMMENT ON VIEW {s}.usage_by_speaker IS
    'use of each codebook by each speaker; distance: from that of the table, 0 the same, 1 no code in common';
"""

DRIFT_OF_CODES = """
CREATE VIEW main.drift_codes AS
    SELECT codebook, code, a.times AS times, b.times AS other_times, a.share AS share, b.share AS other_share,
        b.share - a.share AS change
    FROM main.usage AS a JOIN other.usage AS b USING (codebook, code)
    ORDER BY abs(change) DESC, codebook, code;
COMMENT ON VIEW main.drift_codes IS 'how often each code is used in the two tables, the largest change first';

CREATE VIEW main.drift AS
    WITH merged AS (SELECT *, (share + other_share) / 2 AS middle FROM main.drift_codes)
    SELECT codebook, sum(abs(change)) / 2 AS distance,
        (sum(share * log2(share / middle)) FILTER (share > 0)
            + sum(other_share * log2(other_share / middle)) FILTER (other_share > 0)) / 2 AS js_bits,
        count(*) FILTER (times > 0 AND other_times = 0) AS only_here,
        count(*) FILTER (times = 0 AND other_times > 0) AS only_other
    FROM merged GROUP BY codebook ORDER BY codebook;
COMMENT ON VIEW main.drift IS
    'use of the codebooks in the two tables; distance: 0 the same, 1 nothing in common; js_bits: Jensen-Shannon';
"""

DRIFT_OF_CUTS = """
CREATE VIEW main.drift_cuts AS
    SELECT a.cut_id, b.cut_id AS other_cut_id, a.rrl AS rrl, b.rrl AS other_rrl, b.rrl - a.rrl AS change,
        a.num_frames AS frames, b.num_frames AS other_frames, {same} AS same_codes
    FROM main.utterances AS a JOIN other.utterances AS b
        ON a.recording_id = b.recording_id AND a.channel = b.channel AND round(a.speed, 5) = round(b.speed, 5)
        AND round(a.start, 4) = round(b.start, 4) AND round(a.duration, 4) = round(b.duration, 4);
COMMENT ON VIEW main.drift_cuts IS 'cuts of the same audio in the two tables: losses, share of codes that are the same';
"""

SAME = """list_avg(list_transform(
    list_zip(flatten(a.codes::UTINYINT[][]), flatten(b.codes::UTINYINT[][])), lambda pair: (pair[1] = pair[2])::INTEGER
))"""
