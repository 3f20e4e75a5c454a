package sqlstore_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log"

	"github.com/kvmbackup/kvmbackup/store/sqlstore"
)

// A host hands over the database that it has, with a driver of its choice; the store makes its tables in it.
func Example() {
	ctx := context.Background()
	db, err := sql.Open("sqlite",
		"file:/var/lib/host/backups.db?_pragma=journal_mode(WAL)&_pragma=busy_timeout(10000)&_pragma=synchronous(FULL)")
	if err != nil {
		log.Fatal(err)
	}
	st, err := sqlstore.New(ctx, db, sqlstore.Config{TablePrefix: "nas_"})
	if err == nil {
		err = st.Migrate(ctx)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// A host with a migration tool of its own takes the statements.
func ExampleMigrations() {
	steps, err := sqlstore.Migrations(sqlstore.Config{
		Dialect: sqlstore.DialectPostgreSQL, Schema: "backup", TablePrefix: "nas_",
	})
	if err != nil {
		log.Fatal(err)
	}
	for _, m := range steps {
		fmt.Println(m.Version, m.Name, len(m.SQL))
	}
	// Output:
	// 1 0001_tables 3
	// 2 0002_indexes 6
}

// A program that meets tables of a newer library says so and stops.
func ExampleSchemaError() {
	err := error(&sqlstore.SchemaError{Have: 3, Want: 2})
	fmt.Println(errors.Is(err, sqlstore.ErrSchemaNewer), err)
	// Output: true the schema is newer than this library knows: the database has version 3, the library 2
}
