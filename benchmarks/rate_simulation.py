import heapq, math, random, sys, time
from elkimg_async.ratelimit import controller as C
from elkimg_async.sansio.responses import RateLimit

class Bucket:
    def __init__(self, rate, burst): self.rate, self.burst, self.level, self.at = rate, burst, burst, 0.0
    def fill(self, now):
        self.level = min(self.burst, self.level + (now - self.at) * self.rate); self.at = now
    def set_rate(self, rate, now): self.fill(now); self.rate = rate
    def ask(self, now):
        self.fill(now)
        ok = self.level >= 1 - 1e-9
        if ok: self.level -= 1
        return ok, int(self.level + 1e-9), (self.burst - self.level) / self.rate, (1 - self.level) / self.rate

class Window:
    def __init__(self, rate, length): self.rate, self.length, self.used, self.end = rate, length, 0, length
    def set_rate(self, rate, now): self.rate = rate
    def ask(self, now):
        while now >= self.end: self.end += self.length; self.used = 0
        limit = max(1, round(self.rate * self.length))
        ok = self.used < limit
        self.used += ok
        return ok, max(0, limit - self.used), self.end - now, self.end - now

def simulate(server, rates, seconds, latency, refusal, headers=False, retry_after=None, seed=1, jitter=0.001, net=0.0002, trace=False):
    rnd = random.Random(seed)
    c, h = C.Controller(), C.HeaderLimits()
    segs = len(rates)
    seglen = seconds / segs
    changes = [(i * seglen, rates[i]) for i in range(1, segs)]
    events = []; seq = 0
    log = []
    paused = -1.0; in_flight = 0
    now = 0.0
    wake = 0.0
    started_at = {}
    while now < seconds:
        # next start
        when = max(c.ready_at(now, in_flight), paused, h.ready_at(now, c.starts), now)
        t_start = when if when <= now + 1e-12 else max(when, now) + rnd.random() * jitter
        if events and events[0][0] < when + (0 if when <= now else 0):
            ev = heapq.heappop(events)
        else:
            now = max(now, t_start)
            if now > seconds: break
            # events may have occured before t_start through jitter; handle approx
            n = c.started(now); started_at[n] = now; in_flight += 1
            seq += 1
            heapq.heappush(events, (now + min(latency, refusal) * 0.5 + rnd.random() * net, seq, 0, n, None))
            continue
        now = max(now, ev[0])
        kind, n, info = ev[2], ev[3], ev[4]
        if kind == 0:
            while changes and now >= changes[0][0]:
                server.set_rate(changes.pop(0)[1], now)
            ok, rem, reset, ra = server.ask(now)
            log.append((now, ok))
            if trace: print(f"{now:8.3f} {'ok' if ok else 'REFUSED'} pace={c._pace():.2f} plateau={c._plateau:.2f} x={c._elapsed/c._return-1:.2f} ret={c._return:.2f}")
            seq += 1
            d = latency if ok else min(latency, refusal)
            heapq.heappush(events, (started_at[n] + d, seq, 1 if ok else 2, n, (rem, reset, ra)))
        else:
            in_flight -= 1
            rem, reset, ra = info
            st = started_at.pop(n)
            if headers: (h.succeeded if kind == 1 else h.rate_limited)(n, st, RateLimit(remaining_requests=rem, reset_requests=reset, limit_requests=1800))
            if kind == 1: c.succeeded()
            else:
                pause = 0.0
                if retry_after == 'exact': pause = ra
                elif retry_after == 'whole': pause = math.ceil(ra)
                if pause: paused = max(paused, now + min(pause, C.MAX_PAUSE))
                c.rate_limited(n, pause)
    res = []
    for i, r in enumerate(rates):
        a, b = i * seglen + 10, (i + 1) * seglen
        adm = sum(1 for t, ok in log if ok and a <= t < b)
        res.append(adm / (r * (b - a)))
    ref = sum(1 for t, ok in log if not ok)
    return res, ref / max(1, len(log)), log

PATTERNS = {'flat': [1], 'double': [1, 2], 'half': [1, 0.5], 'dh': [1, 2, 1]}

def evaluate(args):
    kind, R, B, L, d, pat, headers, ra, seed = args
    server = Bucket(R, B) if kind == 'b' else Window(R, B)
    rates = [R * f for f in PATTERNS[pat]]
    res, ref, _ = simulate(server, rates, 120.0, L, d, headers, ra, seed)
    mean = sum(r * f for r, f in zip(res, PATTERNS[pat])) / sum(PATTERNS[pat])
    return args, min(res), mean, ref

def run(grid, procs=2):
    import multiprocessing
    with multiprocessing.Pool(procs) as pool:
        return pool.map(evaluate, grid, chunksize=4)

def report(results, show=30):
    bad = []
    from collections import defaultdict
    g = defaultdict(list)
    for a, lo, mean, ref in results:
        kind, R, B, L, d, pat, headers, ra, seed = a
        lim = 0.03 if R < 10 else 0.02
        fail_ref = ref > lim
        fail_mean = mean < 0.95
        fail_seg = lo < 0.95
        for key in [('all',), ('R', R), ('B', kind, B), ('L', L), ('d', d), ('pat', pat), ('hdr', headers, ra)]:
            g[key].append((fail_ref, fail_mean, fail_seg, mean, lo, ref))
        if fail_ref or fail_mean: bad.append((a, lo, mean, ref))
    for k, v in sorted(g.items(), key=str):
        n = len(v)
        print(f"{str(k):22} n={n:5} fail ref {sum(x[0] for x in v)/n:6.1%} mean {sum(x[1] for x in v)/n:6.1%} seg {sum(x[2] for x in v)/n:6.1%} | avg mean {sum(x[3] for x in v)/n:.3f} worst {min(x[3] for x in v):.3f} seg worst {min(x[4] for x in v):.3f} ref avg {sum(x[5] for x in v)/n:.4f} max {max(x[5] for x in v):.4f}")
    bad.sort(key=lambda b: b[2] - 3*b[3])
    for b in bad[:show]: print(b[0], f"seg {b[1]:.3f} mean {b[2]:.3f} ref {b[3]:.4f}")

if __name__ == '__main__':
    import itertools
    which = sys.argv[1]
    if which == 'small':
        grid = list(itertools.product('b', [2, 5, 10, 20, 50], [1, 2, 5, 10, 50], [0.1, 1.0, 10.0], [0.05], ['flat', 'double', 'half', 'dh'], [False], [None], [1]))
    t = time.time()
    r = run(grid)
    print(time.time() - t)
    report(r)
