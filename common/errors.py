"""Every error Veilfed raises on purpose, drawn once, by who must act.

FederationError
|- ConfigError      exit 2: our operator must fix a file, an option or a value
|- PrivacyError     exit 3: stop, a promise would break
|  |- BudgetExceeded     the data set's budget would be overspent
|  |- CohortTooSmall     fewer sites than the promise needs
|  `- UnknownEvent       nobody can say what this release costs, so it costs infinity
|- ProtocolError    exit 4: the other side sent something wrong
|  |- WireError          bytes that cannot be explained
|  |- WrongRound         a message for another round: late or replayed
|  |  `- LateUpdate      an update of a round that is over; its site may still answer the one that is open
|  |- UnexpectedSender   not in the cohort, or answered already
|  `- InvalidUpdate      wrong length, or not finite
|- TrustError       exit 4: signature, certificate, or a version going backwards
`- NotNow           exit 3: a site says no for the time being; ask the same again later
   `- AwaitingApproval   until a person at the site has said yes or no
"""


class FederationError(Exception):
    """The root. `hint` is the next step for the reader; it may be empty."""

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    @property
    def code(self) -> str:
        """Stable name for machines, e.g. `BudgetExceeded`."""
        return type(self).__name__


class ConfigError(FederationError):
    exit_code = 2


class PrivacyError(FederationError):
    exit_code = 3


class BudgetExceeded(PrivacyError):
    pass


class CohortTooSmall(PrivacyError):
    pass


class UnknownEvent(PrivacyError):
    pass


class ProtocolError(FederationError):
    exit_code = 4


class WireError(ProtocolError):
    pass


class WrongRound(ProtocolError):
    pass


class LateUpdate(WrongRound):
    pass


class UnexpectedSender(ProtocolError):
    pass


class InvalidUpdate(ProtocolError):
    pass


class TrustError(FederationError):
    exit_code = 4


class NotNow(FederationError):
    exit_code = 3


class AwaitingApproval(NotNow):
    pass
