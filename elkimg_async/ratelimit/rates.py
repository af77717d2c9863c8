"""How fast a server lets requests through: learnt from its refusals (`Adaptive`), or read in its headers (`Told`).

All times are seconds of one clock, all rates are starts for each second.
"""

import math
from bisect import insort

from elkimg_async.sansio.responses import RateLimit

MINUTE = 60.0
LONGEST = 120.0  # seconds: no header holds everything back for longer

GENTLE_START = 32.0  # starts at once
GENTLE_RATE = 20.0  # further ones for each second
GENTLE_GROWTH = 2.0  # and for each good answer

LATE = 0.05  # seconds by which a start may be late without being lost
ENOUGH = 1.0 - 1e-9
PAID = 60.0  # admissions that pay for one refusal
PAUSE_PAID = 40.0  # how many times as long as a pause has to go well to pay for it
MOST_DEBT = 4.0  # refusals to be paid for, so that a bad start is forgotten
PRECISE = 30  # admissions from which a result is exact enough to be held to
LEAST_HOLD = 4.0  # seconds between two probes
CLIMB = 0.15  # the share by which a probe climbs slowly
GROWTH = 1.0  # seconds in which the pace of a probe then grows by a factor e
SLOWEST, FASTEST = 0.05, 1e6
OUTAGE_RATE = 1.0  # starts that go on while everything is refused, to see its end
LONG_GOOD = 10.0  # seconds after which good answers open the window by one each

MARGIN = 0.05  # seconds by which a new window is awaited
HEADERS_KEPT = 16
ROUNDING = 0.001  # seconds to which a reset is exact, unless it is in whole ones
SPREAD = 1 / 6  # of the time in which a bucket fills: in so much is used up what it has in store,
LONGEST_SPREAD = 10.0  # but in no more than so many seconds
RESERVE = 0.25  # of a request is left in a bucket: its level is known no better
VAGUE = 2.0  # the factor within which a rate must be known to be kept to


class Adaptive:
    """What the refusals of a server teach: a rate of starts, and for an overloaded one a number in flight.

    Until the first refusal it is an allowance, which grows with good answers. After it, a pace, which is cut at
    a refusal and grows again. The server is taken for a bucket that fills at a rate R, refuses when
    it is empty, and has a capacity that nobody tells. Between two refusals it has admitted what flowed in,
    unless it ran over in between; so what was admitted in that time (`result`) is R, or less than R, and the pace
    at the refusal is R or more. A refusal is read as one of these:

    - after fewer than three admissions: the pace is far off, and halved; after none at all it says nothing of a rate,
      but that there is an outage, whose end is looked for once a second;
    - the pace never was below the result: the bucket cannot have run over, and the result is R;
    - the result repeats what was known: R is still that;
    - else R is between the result and the pace: the middle is tried. Refused soon, it was above R, and
      teaches R exactly; not refused, the bucket is a small one, where the pace at a refusal is what counts
      (`tight`).

    What is known is held to, a little below, until enough was admitted to pay for the refusals that it cost;
    then the pace climbs and grows, ever faster, to the next refusal.
    """

    def __init__(self) -> None:
        self.window = math.inf
        """How many may be in flight."""
        self._level, self._at = GENTLE_START, 0.0
        self._base = math.inf  # what R is taken for
        self._known = False  # whether `_base` is exact, so that it is worth holding to
        self._top = math.inf  # the pace at the end of the hold
        self._steps = 0.0  # requests for which an inexact base is held to
        self._held_from = 0.0
        self._first_pace = math.inf
        self._fallback: float | None = None  # what to go back to when the middle was too much
        self._sure = False
        self._tight = False
        self._outage = False  # nothing was admitted between the last two refusals
        self._doubt = self._skip = 0
        self._debt = self._pause = self._delay = 0.0
        self._cut_at = -math.inf
        self._mark: _Mark | None = None
        self._count = 0
        self._checks = (0.0, 0), (0.0, 0)

    @property
    def free(self) -> bool:
        """Whether nothing was refused yet."""
        return self._base == math.inf

    def rate(self, now: float) -> float:
        """Starts for each second that are held to now; `math.inf` until a refusal."""
        if self._base == math.inf:
            return math.inf
        hold, start = self._hold(), self._base * self._share()
        passed = now - self._held_from
        if passed < hold:
            return start + (self._top - start) * max(0.0, passed / hold)
        passed -= hold
        climb = 0.5 if self._outage else max(0.5, 12.0 / self._base)
        if passed < climb:
            return self._top * (1.0 + CLIMB * passed / climb)
        growth = max(GROWTH, 3.0 * self._delay)
        if not self._outage:
            growth = max(growth, 4.0 / self._base)
        exponent = min(50.0, (passed - climb) / growth)
        return min(FASTEST, self._top * (1.0 + CLIMB) * math.exp(exponent))

    def ready_at(self, now: float) -> float:
        """When the next request may start."""
        if self._base == math.inf:
            if self._level >= 2.0:  # enough, whatever has been added since
                return now
            rate, most = GENTLE_RATE, GENTLE_START
        else:
            rate = self.rate(now)
            most = 1.0 + rate * LATE
        if now > self._at:
            if self._level < most:
                level = self._level + (now - self._at) * rate
                if level > most:  # time in which the pace held nobody back teaches nothing
                    self._held_from += (level - most) / rate
                    level = most
                self._level = level
            else:
                self._held_from += now - self._at
            self._at = now
        return now if self._level >= ENOUGH else now + (1.0 - self._level) / rate

    def started(self, now: float) -> None:
        """Note a start."""
        self._level = max(0.0, self._level - 1.0)
        self._count += 1
        if now - self._checks[1][0] > 1.0:
            self._checks = self._checks[1], (now, self._count)

    def answered(self, now: float, in_flight: int) -> None:
        """Note a good answer; `in_flight` counts it too."""
        if self._base == math.inf and self._level < max(GENTLE_START, in_flight):
            self._level += GENTLE_GROWTH
        if self.window < math.inf:
            self.window += 1.0 / self.window if now - self._cut_at < LONG_GOOD else 1.0

    def refused(self, started: float, number: int, now: float, *, pause: float) -> bool:
        """Note that request `number` was refused, `pause` being its Retry-After; returns whether that is news.

        It is none when the request had started before the last cut: that one cut was for all of a burst.
        """
        mark = self._mark
        if mark is not None and number > mark.number:
            mark.refused += 1
        if started <= self._cut_at:
            self._debt = min(self._debt + 1.0, MOST_DEBT)
            return False
        self._delay = now - started
        if mark is None:
            pace = self._recent(started, number)
            self._set(pace / 2, top=pace, steps=8)
        else:
            self._learn(mark, started, number)
        self._cut_at, self._pause = now, pause
        self._at = self._held_from = now + pause
        self._level = 0.0
        self._mark = _Mark(started, number)
        self._first_pace = self.rate(self._held_from)
        return True

    def overloaded(self, in_flight: int) -> None:
        """Halve how many may be in flight."""
        self.window = max(1.0, min(self.window, in_flight) / 2)

    def _recent(self, started: float, number: int) -> float:
        at, count = self._checks[0]
        return max(GENTLE_RATE, (number - count) / max(1.0, started - at))

    def _hold(self) -> float:
        """Seconds for which the base is held to."""
        paid = max(LEAST_HOLD, PAID * self._debt / self._base, PAUSE_PAID * self._pause)
        return paid if self._known else min(paid, self._steps / self._base)

    def _share(self) -> float:
        """How much of a known rate is used: what is left over is one or two requests in a hold."""
        if not self._known:
            return 1.0
        return 1.0 - min(0.015, max(0.004, 1.5 / (self._base * self._hold())))

    def _set(
        self, base: float, *, known: bool = False, top: float = 0.0, steps: float = 8.0
    ) -> None:
        self._base, self._known, self._steps = max(SLOWEST, base), known, steps
        self._top = max(self._base * self._share(), top)

    def _learn(self, mark: "_Mark", started: float, number: int) -> None:
        """Set the pace by what was admitted since the mark."""
        pace = self.rate(started)
        before = self.rate(max(self._held_from, started - 1.0 / pace))
        probing = started - self._held_from >= self._hold()
        admitted = number - mark.number - mark.refused
        seconds = max(started - mark.at, 1e-6)
        result = admitted / seconds
        exact = min(pace, (admitted + 1) / seconds)
        precise = admitted >= PRECISE
        self._debt = min(max(0.0, self._debt - admitted / PAID) + 1.0, MOST_DEBT)
        fallback, self._fallback = self._fallback, None
        if fallback is not None and not self._tried(fallback, probing, admitted, result, exact):
            return
        self._outage = admitted == 0
        if admitted < 3 and not (self._tight and probing):
            slowest = min(pace, OUTAGE_RATE) if self._outage else 0.0
            self._set(max(pace / 2, slowest, (admitted - 1) / seconds), top=pace, steps=4)
            return
        self._tight = self._tight and probing
        low, sure = result, True
        if fallback is not None:
            low = max(self._base, result)
        elif (
            self._known and probing and abs(result / self._base - 1) < 0.03 + 2.0 / max(1, admitted)
        ):
            low = max(self._base, result if precise else 0.0)
        elif result <= self._first_pace * 1.03 and not self._tight:
            self._set(result, known=precise, top=0.0 if precise else exact, steps=2 * admitted)
            return
        else:
            sure = False
        gap, surplus = pace / low, admitted - low * seconds
        if self._tight and gap < 1.2:
            self._set(max(low, before * 0.99), known=True)
        elif gap > 1.08 and (
            self._skip <= 0 or not sure or self._tight or gap > 1.6 or surplus > 2.0
        ):
            middle = math.sqrt(low * pace)
            self._fallback, self._sure = low, sure
            self._set(middle, steps=max(8.0, 3 * middle / (middle - low)))
        else:
            self._skip -= 1
            self._set(low, known=precise or sure, steps=2 * admitted)

    def _tried(
        self, fallback: float, probing: bool, admitted: int, result: float, exact: float
    ) -> bool:
        """Whether a middle was held to without a refusal; else go back, the wiser by its result."""
        self._tight = probing
        if probing:
            self._doubt = 0
            return True
        self._doubt = self._skip = min(64, 2 * self._doubt + 2)
        if self._sure:
            gain = max(0.0, result - fallback) * min(1.0, admitted / PRECISE)
            self._set(fallback + gain, known=True)
        else:
            self._set(max(fallback, result), top=exact, steps=2 * admitted)
        return False


class _Mark:
    """A request that was refused, and how many of those after it were."""

    __slots__ = ("at", "number", "refused")

    def __init__(self, at: float, number: int) -> None:
        self.at, self.number, self.refused = at, number, 0


class Told:
    """What the latest rate-limit headers allow.

    `reset` means one of two things. Where the allowance is a bucket that fills all the time, it is the time until the
    bucket is whole, and each request puts that moment off. Where it is a window of time, it is the end of
    the window, and no request moves it. The second answer and those that follow tell which.

    Of a bucket neither the rate nor the level is told, but each header bounds both. It is taken to hold the least that
    the bounds allow, and to fill at the most: where that is too much the level says so at once, while what was
    held back from a small bucket is lost.

    What an answer says was true when its request came in, and the requests sent after that one are not in it. So a
    header counts from the start of its request, less what has started since; of answers out
    of order, that of the latest request is believed.
    """

    def __init__(self) -> None:
        self._number = 0
        self._limit = self._remaining = 0
        self._reset = self._at = 0.0
        self._until = -math.inf
        self._window = self._rolled = self._refused = False
        self._length = MINUTE
        self._rates: list[tuple[int, float, float]] = []  # number, and the least and most it can be
        self._least, self._most = 0.0, math.inf  # what the latest of them agree on
        self._level, self._filled_at = 1.0, 0.0
        self._last_start = -math.inf

    def learn(
        self, started: float, number: int, limit: RateLimit, *, refused: bool = False
    ) -> bool:
        """Take the headers of the answer to a request; returns whether they can be used."""
        most, left, reset = limit.limit_requests, limit.remaining_requests, limit.reset_requests
        if left is None or reset is None or not 0.0 <= reset < math.inf or most == 0:
            return False
        most = max(left, 1 if most is None else most)
        if reset > 0.0 and most > left:
            self._bound_rate(number, most - left, reset, refused)
        if number < self._number + self._rolled:
            return True
        if not refused and not self._refused and self._number and most == self._limit:
            self._tell_kind(started, number, reset)
        if self._window and self._rolled and not refused and reset > 0.0:
            self._length = max(1.0, started + reset - self._at)
        self._rolled, self._refused = False, refused
        self._number, self._at = number, started
        self._limit, self._remaining, self._reset = most, left, reset
        self._until = started + max(MINUTE, min(reset, LONGEST)) + MINUTE
        return True

    def _tell_kind(self, started: float, number: int, reset: float) -> None:
        """See whether the requests since the last header, all admitted, have put the end off."""
        if started >= self._at + self._reset:
            return
        expected = (number - self._number) / self._most
        if expected > 2.5 * (1.0 if reset == int(reset) else 0.1):
            moved = started + reset - self._at - self._reset
            self._window = abs(moved) < 0.4 * expected

    def _bound_rate(self, number: int, missing: int, reset: float, refused: bool) -> None:
        """See what flows into a bucket in a second, from the latest headers that agree.

        Of the missing a fraction is not told, though what was admitted has just taken one, and a
        reset in whole seconds has been rounded up.
        """
        surely = max(missing - 1, 0 if refused else 1)
        rest = reset - 1.0 if reset == int(reset) else reset + ROUNDING
        most = missing / rest if rest > 0.0 else math.inf
        insort(self._rates, (number, surely / (reset + ROUNDING), most))
        del self._rates[:-HEADERS_KEPT]
        _, self._least, self._most = self._rates[-1]
        for _, least, most in reversed(self._rates):
            if least > self._most or most < self._least:
                break
            self._least, self._most = max(self._least, least), min(self._most, most)

    def known(self, now: float) -> bool:
        """Whether there are headers that are not out of date."""
        return now < self._until

    @property
    def vague(self) -> bool:
        """Whether a rate is left open, as by whole seconds for a bucket that is full in a few of them."""
        coarse = self._reset == int(self._reset) and self._limit > 1 and not self._window
        return coarse and self._most > VAGUE * self._least

    def rate(self, now: float, total: int) -> float:
        """Starts for each second that are held to now."""
        left, until = self._left(now, total)
        if self._window:
            # A window longer than a minute need not be spread over all of itself.
            return max(0.0, left) / max(min(until - now, MINUTE + MARGIN), 0.05)
        store = max(0.0, left - 1.0)
        if self.vague:
            return max(GENTLE_RATE, VAGUE * self._least) + store
        if self._most == math.inf:
            return math.inf
        return self._most + store / min(LONGEST_SPREAD, SPREAD * self._limit / self._most)

    def _left(self, now: float, total: int) -> tuple[float, float]:
        """How many may still start, and until when."""
        since = total - self._number
        end = self._at + self._reset + (MARGIN if self._window else 0.0)
        if not self._window:
            least = self._least
            left = self._remaining + (now - self._at) * least  # at least, but for those since
            if now >= end:
                left = max(left, self._limit + (now - end) * least)
            elif self._most < math.inf:
                left = max(left, self._limit - (end - now) * self._most)
            return min(left - since, float(self._limit)), end
        if now >= end:  # a new window, of which no answer has told yet
            self._at = end + (now - end) // self._length * self._length
            self._reset, self._rolled = self._length, True
            self._remaining, self._number, since = self._limit, total, 0
            end = self._at + self._reset + MARGIN
        return float(self._remaining - since), end

    def ready_at(self, now: float, total: int) -> float:
        """When the next may start."""
        left, until = self._left(now, total)
        rate = self.rate(now, total)
        needed = 1.0 if self._window else min(1.0 + RESERVE, self._limit)
        if left < needed * ENOUGH and not self.vague:
            when = until if self._window else now + (needed - left) / rate if rate > 0.0 else until
            if when <= now:
                when = now + 1.0
            # However long a header forbids everything, now and then one is sent to look.
            return min(when, max(now, self._last_start + LONGEST))
        most = 1.0 + min(rate, 1e6) * 0.05
        if now > self._filled_at:
            level = most if rate == math.inf else self._level + (now - self._filled_at) * rate
            self._level, self._filled_at = min(most, level), now
        if self._level >= ENOUGH:
            return now
        return min(now + (1.0 - self._level) / rate, max(now, self._last_start + LONGEST))

    def started(self, now: float) -> None:
        """Note a start."""
        self._level = max(0.0, self._level - 1.0)
        self._last_start = now
