"""What a run may spend."""

from elkimg_async.batch.budget import Budget


def test_budget_without_limits_allows_everything() -> None:
    """None means no limit."""
    budget = Budget()
    budget.reserve(10**9)
    assert budget.reached(10**9) is None


def test_budget_of_images_counts_what_is_in_flight() -> None:
    """The limit may be reached and not passed; a request that made nothing frees its share."""
    budget = Budget(max_images=10, images=3)
    budget.reserve(4)
    assert budget.reached(3) is None
    assert budget.reached(4) == "max_images"
    budget.release(4)
    assert budget.reached(7) is None
    budget.reserve(7)
    budget.release(7)
    budget.spend(7, 0)
    assert budget.reached(1) == "max_images"


def test_budget_of_tokens_learns_from_the_first_request() -> None:
    """Until a price is known requests go one by one; then those in flight count at that price."""
    budget = Budget(max_total_tokens=1000)
    assert budget.reached(2) is None
    budget.reserve(2)
    assert budget.reached(1) == "max_total_tokens"
    budget.release(2)
    budget.spend(2, 400)
    assert budget.reached(3) is None
    assert budget.reached(4) == "max_total_tokens"
    budget.reserve(2)
    assert budget.reached(1) is None
    assert budget.reached(2) == "max_total_tokens"


def test_budget_of_errors_is_reached_by_the_last_of_them() -> None:
    """So many failures end the run."""
    budget = Budget(max_errors=2)
    budget.fail()
    assert budget.reached(1) is None
    budget.fail()
    assert budget.reached(1) == "max_errors"


def test_budget_is_not_held_up_where_nobody_tells_the_price() -> None:
    """A server that tells no tokens is not limited by them, and one failure does not make images cheap."""
    budget = Budget(max_total_tokens=1000)
    budget.reserve(1)
    budget.release(1)
    budget.spend(1, None)
    budget.reserve(5)
    assert budget.reached(100) is None
    budget.release(5)
    budget.spend(1, 300)
    assert budget.reached(2) is None
    assert budget.reached(3) == "max_total_tokens"


def test_budget_lets_pass_what_is_paid_for() -> None:
    """Fetching images that were made before costs nothing."""
    assert Budget(max_images=3, images=3).reached(0) is None
    assert Budget(max_images=3, images=3).reached(1) == "max_images"


def test_budget_of_tokens_counts_what_was_lost() -> None:
    """Images that no answer told the tokens of are taken to cost what the others did, and make them no cheaper."""
    budget = Budget(max_total_tokens=1000, images=5, lost=3, tokens=200)
    assert budget.reached(5) is None
    assert budget.reached(6) == "max_total_tokens"
    budget.spend(1, None, responded=False)
    assert budget.reached(5) == "max_total_tokens"


def test_budget_takes_back_what_is_billed_once() -> None:
    """Where lost images are asked for again under their key, they cost what the answer says."""
    budget = Budget(max_images=5, max_total_tokens=500, images=5, lost=3, tokens=200)
    assert budget.reached(1) == "max_images"
    budget.resume(3)
    assert budget.reached(3) is None
    budget.reserve(3)
    assert budget.reached(1) == "max_images"
    budget.release(3)
    budget.spend(2, 200)
    assert budget.reached(1) is None
    assert budget.reached(2) == "max_images"


def test_budget_of_tokens_does_not_learn_from_a_failure() -> None:
    """After a failure that may have made an image no price is known yet; after an answer without usage none will be."""
    budget = Budget(max_total_tokens=1000)
    budget.spend(1, None, responded=False)
    budget.reserve(1)
    assert budget.reached(1) == "max_total_tokens"
    budget.spend(1, None)
    assert budget.reached(1) is None
