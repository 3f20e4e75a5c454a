package testpg_test

import (
	"database/sql"
	"os"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/kvmbackup/kvmbackup/internal/testpg"
)

func TestMain(m *testing.M) { os.Exit(testpg.Main(m)) }

func TestServer(t *testing.T) {
	db, err := sql.Open("pgx", testpg.DSN(t))
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var bytewise bool
	if err := db.QueryRow(`SELECT 'B' < 'a'`).Scan(&bytewise); err != nil {
		t.Fatal(err)
	}
	if bytewise {
		t.Error("the server's collation is that of bytes; it would hide a missing one in a schema")
	}
	if again := testpg.DSN(t); again != testpg.DSN(t) {
		t.Error("a second server was started")
	}
}
