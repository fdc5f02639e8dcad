"""These tests are for the published repository's stack: `make test-old` runs them there, and elsewhere they are not collected."""
import sys

collect_ignore_glob = [] if sys.version_info < (3, 9) else ["*"]
