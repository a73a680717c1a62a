import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import pytest

from tests.lock_holders import lock_holders


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says who holds a lock")
def test_a_query_that_was_not_read_to_its_end_is_found(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    with closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE runs (half_read)")
        connection.execute("INSERT INTO runs VALUES (1), (2)")
        connection.commit()
        assert f"process {os.getpid()} on" not in lock_holders(database)
        with closing(connection.execute("SELECT half_read FROM runs")) as cursor:
            assert cursor.fetchone() == (1,)
            found = lock_holders(database)
    assert f"READ lock of process {os.getpid()} on bytes" in found
    assert "cursor over ['half_read']" in found
    assert "thread MainThread:" in found
