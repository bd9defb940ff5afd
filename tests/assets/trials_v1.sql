BEGIN TRANSACTION;
CREATE TABLE results (
            number INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            workload TEXT NOT NULL,
            target TEXT NOT NULL,
            created REAL NOT NULL,
            version TEXT NOT NULL,
            result TEXT NOT NULL
        );
INSERT INTO "results" VALUES(1,'85516fbbb67c4c578460cb2dca925eb5','gemm(m=64, n=37, k=128, bias=False)','llvm-test',1.79550207282225871086e+09,'0.1.0','{"config":{"tile":1},"formulation":"direct","x":null}');
CREATE TABLE trials (
            number INTEGER PRIMARY KEY,
            id TEXT NOT NULL UNIQUE,
            workload INTEGER NOT NULL REFERENCES workloads (id),
            created REAL NOT NULL,
            version TEXT NOT NULL,
            session TEXT NOT NULL,
            seed INTEGER,
            formulation TEXT NOT NULL,
            config TEXT NOT NULL,
            status TEXT NOT NULL,
            times TEXT NOT NULL,
            message TEXT NOT NULL,
            error REAL,
            build_seconds REAL NOT NULL,
            run_seconds REAL NOT NULL,
            seconds REAL
        );
INSERT INTO "trials" VALUES(1,'e1bbf9a954b74e5ba6225d4eabc1458d',1,1.79550207282017183305e+09,'0.1.0','asset',7,'direct','{"alpha":0.5,"order":"mnk","pack":true,"split":[4,0],"tile":1}','ok','[3e-06,1e-06,2e-06]','',1.0e-07,0.25,0.5,2.0e-06);
INSERT INTO "trials" VALUES(2,'f653ccd17e6246fd8bcdc2a9a46c6ab6',1,1.79550207282173418998e+09,'0.1.0','asset',7,'direct','{"alpha":0.5,"order":"mnk","pack":true,"split":[4,1],"tile":2}','illegal','[]','why it is illegal: ü',NULL,0.25,0.5,NULL);
INSERT INTO "trials" VALUES(3,'5ef63cdce1a540b0b7be9ca606616d5f',1,1.79550207282188725469e+09,'0.1.0','asset',7,'direct','{"alpha":0.5,"order":"mnk","pack":true,"split":[4,2],"tile":4}','build_error','[]','why it is build_error: ü',NULL,0.25,0.5,NULL);
INSERT INTO "trials" VALUES(4,'1e6c3a56dba84091a8689cf16bb68c4c',1,1.79550207282198977468e+09,'0.1.0','asset',7,'direct','{"alpha":0.5,"order":"mnk","pack":true,"split":[4,3],"tile":8}','run_error','[]','why it is run_error: ü',NULL,0.25,0.5,NULL);
INSERT INTO "trials" VALUES(5,'ba862460661d475e8f530e669e9b98f9',1,1.79550207282208752626e+09,'0.1.0','asset',7,'direct','{"alpha":0.5,"order":"mnk","pack":true,"split":[4,4],"tile":16}','timeout','[]','why it is timeout: ü',NULL,0.25,0.5,NULL);
INSERT INTO "trials" VALUES(6,'087f1b7ab380471db9090f5099fcd362',1,1.79550207282217621799e+09,'0.1.0','asset',7,'direct','{"alpha":0.5,"order":"mnk","pack":true,"split":[4,5],"tile":32}','wrong_result','[]','why it is wrong_result: ü',NULL,0.25,0.5,NULL);
CREATE TABLE workloads (
            id INTEGER PRIMARY KEY,
            key TEXT NOT NULL,
            target TEXT NOT NULL,
            operator TEXT NOT NULL,
            params TEXT NOT NULL,
            UNIQUE (key, target)
        );
INSERT INTO "workloads" VALUES(1,'gemm(m=64, n=37, k=128, bias=False)','llvm-test','gemm','{"bias":false,"k":128,"m":64,"n":37}');
CREATE INDEX trials_by_speed ON trials (workload, seconds);
CREATE INDEX trials_by_config ON trials (workload, formulation, config);
CREATE INDEX results_by_workload ON results (workload, target);
COMMIT;
PRAGMA application_id = 1179408468;
PRAGMA user_version = 1;
