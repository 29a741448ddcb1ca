"""`phicourse doctor`."""

from phicourse.cli.options import Json
from phicourse.cli.output import print_json
from phicourse.errors import PhiCourseError


def doctor(as_json: Json = False) -> None:
    """Check that everything the course needs is here.

    A line begins with [OK], or with [FAIL] and says what to do.
    """
    from phicourse.doctor import examine, report

    checks = examine()
    if as_json:
        print_json([check.as_dict() for check in checks])
    else:
        print(report(checks))
    if failed := [check.name for check in checks if not check.ok]:
        raise PhiCourseError(f"not ready: {', '.join(failed)}")
